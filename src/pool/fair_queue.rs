//! Order of waiting requests: first come, first served for one user; round robin between the users of a provider; round
//! robin between providers. Plain data; [`super::scheduler`] does the waiting.

use std::collections::VecDeque;

/// The requests that wait, in fair order.
#[derive(Debug)]
pub struct FairQueue<T> {
    next_id: u64,
    length: usize,
    /// Providers in their turn: the first is served next.
    providers: VecDeque<Group<User<T>>>,
}

/// Members with the same name, in their turn.
#[derive(Debug)]
struct Group<M> {
    name: String,
    members: VecDeque<M>,
}

type User<T> = Group<Request<T>>;

#[derive(Debug)]
struct Request<T> {
    id: u64,
    value: T,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { next_id: 0, length: 0, providers: VecDeque::new() }
    }
}

impl<T> FairQueue<T> {
    /// Appends a request of `user` to `provider`; returns the request's id in this queue.
    pub fn push(&mut self, provider: &str, user: &str, value: T) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.length += 1;
        let users = find_or_add(&mut self.providers, provider);
        find_or_add(users, user).push_back(Request { id, value });
        id
    }

    /// The request that is next, among the providers for which `wanted` is true.
    pub fn next(&self, wanted: impl Fn(&str) -> bool) -> Option<(u64, &str, &T)> {
        let provider = self.providers.iter().find(|provider| wanted(&provider.name))?;
        let request = provider.members.front()?.members.front()?;
        Some((request.id, &provider.name, &request.value))
    }

    /// Removes a request that is served. Its user and its provider move to the end of their rounds.
    pub fn serve(&mut self, id: u64) -> Option<T> {
        self.take(id, true)
    }

    /// Removes a request that no longer waits. No turn changes.
    pub fn remove(&mut self, id: u64) -> Option<T> {
        self.take(id, false)
    }

    fn take(&mut self, id: u64, served: bool) -> Option<T> {
        for p in 0..self.providers.len() {
            let users = &mut self.providers[p].members;
            for u in 0..users.len() {
                let Some(r) = users[u].members.iter().position(|request| request.id == id) else { continue };
                let request = users[u].members.remove(r)?;
                self.length -= 1;
                rotate(users, u, served);
                rotate(&mut self.providers, p, served);
                return Some(request.value);
            }
        }
        None
    }

    /// Number of requests.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Number of requests for `provider`.
    pub fn waiting_for(&self, provider: &str) -> usize {
        let found = self.providers.iter().find(|group| group.name == provider);
        found.map_or(0, |group| group.members.iter().map(|user| user.members.len()).sum())
    }

    /// All requests in the order in which they would be served if no other came.
    pub fn in_order(&self) -> Vec<(u64, &T)> {
        let mut providers: VecDeque<VecDeque<VecDeque<&Request<T>>>> = self
            .providers
            .iter()
            .map(|provider| provider.members.iter().map(|user| user.members.iter().collect()).collect())
            .collect();
        let mut order = Vec::with_capacity(self.length);
        while let Some(mut users) = providers.pop_front() {
            if let Some(mut requests) = users.pop_front() {
                order.extend(requests.pop_front().map(|request| (request.id, &request.value)));
                if !requests.is_empty() {
                    users.push_back(requests);
                }
            }
            if !users.is_empty() {
                providers.push_back(users);
            }
        }
        order
    }
}

fn find_or_add<'a, M>(groups: &'a mut VecDeque<Group<M>>, name: &str) -> &'a mut VecDeque<M> {
    let index = groups.iter().position(|group| group.name == name).unwrap_or_else(|| {
        groups.push_back(Group { name: name.to_owned(), members: VecDeque::new() });
        groups.len() - 1
    });
    &mut groups[index].members
}

/// Updates a round after a request of group `index` was removed: an empty group is dropped, a served one moves to the
/// end.
fn rotate<M>(groups: &mut VecDeque<Group<M>>, index: usize, served: bool) {
    if groups[index].members.is_empty() {
        groups.remove(index);
    } else if served && let Some(group) = groups.remove(index) {
        groups.push_back(group);
    }
}

#[cfg(test)]
mod tests {
    use super::FairQueue;

    /// Requests as `provider/user`, served one after the other.
    fn served(requests: &[&str]) -> Vec<String> {
        let mut queue = FairQueue::default();
        for (number, request) in requests.iter().enumerate() {
            let (provider, user) = request.split_once('/').unwrap();
            queue.push(provider, user, format!("{request}{number}"));
        }
        let foretold: Vec<_> = queue.in_order().into_iter().map(|(_, value)| value.clone()).collect();
        let mut order = Vec::new();
        while let Some((id, ..)) = queue.next(|_| true) {
            order.push(queue.serve(id).unwrap());
        }
        assert_eq!(queue.len(), 0);
        assert_eq!(foretold, order, "positions are true");
        order
    }

    #[test]
    fn one_user_is_served_in_order() {
        assert_eq!(served(&["p/a", "p/a", "p/a"]), ["p/a0", "p/a1", "p/a2"]);
    }

    #[test]
    fn users_take_turns() {
        let order = served(&["p/a", "p/a", "p/a", "p/b", "p/c", "p/b"]);
        assert_eq!(order, ["p/a0", "p/b3", "p/c4", "p/a1", "p/b5", "p/a2"]);
    }

    #[test]
    fn providers_take_turns_however_many_users_they_have() {
        let order = served(&["p/a", "p/b", "p/c", "q/a", "q/a"]);
        assert_eq!(order, ["p/a0", "q/a3", "p/b1", "q/a4", "p/c2"]);
    }

    #[test]
    fn who_leaves_changes_nothing_for_the_others() {
        let mut queue = FairQueue::default();
        let ids: Vec<_> = ["a", "a", "b", "b"].iter().map(|user| queue.push("p", user, *user)).collect();
        assert_eq!(queue.remove(ids[0]), Some("a"));
        assert_eq!(queue.remove(ids[0]), None, "only once");
        assert_eq!((queue.len(), queue.waiting_for("p"), queue.waiting_for("q")), (3, 3, 0));
        let order: Vec<_> = queue.in_order().into_iter().map(|(id, _)| id).collect();
        assert_eq!(order, [ids[1], ids[2], ids[3]]);
    }

    #[test]
    fn a_provider_that_cannot_be_served_is_passed_over() {
        let mut queue = FairQueue::default();
        queue.push("p", "a", 1);
        queue.push("q", "a", 2);
        assert_eq!(queue.next(|provider| provider != "p").map(|(_, _, value)| *value), Some(2));
        assert_eq!(queue.next(|_| false), None);
    }

    #[test]
    fn a_flood_of_one_user_does_not_keep_another_waiting() {
        let mut requests = vec!["p/flood"; 1000];
        requests.push("p/other");
        assert_eq!(served(&requests)[1], "p/other1000");
    }
}
