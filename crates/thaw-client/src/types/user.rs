//! Names of users, as identity systems give them.

/// Longest name of a user, characters.
pub const MAX_USER: usize = 128;

/// What a name of a user is, as a regular expression.
pub const USER_PATTERN: &str = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$";

/// The same in words.
pub const USER_RULE: &str =
    "must be 1 to 128 characters of A-Z, a-z, 0-9, _ @ | + : / = and -, with single dots between them";

/// Whether `name` is a name of a user: e-mail addresses, `auth0|…`, UUIDs, URNs and the like are. There is no `..` in
/// any, so that none leads out of a folder.
pub fn is_user(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_@|+:/=-".contains(&byte);
    name.len() <= MAX_USER && name.split('.').all(|part| !part.is_empty() && part.bytes().all(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_identity_systems_are_taken_and_others_are_not() {
        let longest = "u".repeat(MAX_USER);
        for good in [
            "a",
            "user-1",
            "user_123",
            "Alice.Smith+test@mail.example.org",
            "auth0|5f7c8ec7c33c6c004bbafe82",
            "google-oauth2|103547991597142817347",
            "arn:aws:iam::123456789012:user/ci",
            "spiffe://example.org/ns/a",
            "-_a4Pz=",
            &longest,
        ] {
            assert!(is_user(good), "{good}");
        }
        let too_long = "u".repeat(MAX_USER + 1);
        for bad in [
            "", ".", "..", "a/../b", ".a", "a.", "a..b", "a b", "a\n", "a\0", "ä", "a%2f", "a\"", "{a}", "a,b", "~",
            &too_long,
        ] {
            assert!(!is_user(bad), "{bad:?}");
        }
    }
}
