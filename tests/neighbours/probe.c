// Takes one kind of kernel memory from inside a container, until it is refused, until the host has PROBE_MIB less free
// memory, or for PROBE_SECONDS. Then prints "KIND COUNT ERRNO" and holds on to it until its standard input ends.
//
// Static and with the kernel's own numbers, so that it runs in any image. One function for each kind; each takes one more
// of it, and returns 0 or -1 with errno. What the filter refuses is a kind as well: it has to stay refused.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/seccomp.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static char block[65536];
static long turn;

static struct sockaddr_in local(int port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static int fill(int fd, int flags) {
    while (send(fd, block, sizeof block, MSG_DONTWAIT | MSG_NOSIGNAL | flags) > 0) {
    }
    return 0;
}

static int netlink(void) {
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    if (fd < 0) return -1;
    int large = 1 << 24;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &large, sizeof large);
    struct {
        struct nlmsghdr head;
        struct rtgenmsg body;
    } ask = {{sizeof ask, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0}, {AF_UNSPEC}};
    for (int i = 0; i < 4096; i++)
        if (send(fd, &ask, sizeof ask, MSG_DONTWAIT) < 0) break;
    return 0;
}

static int ping(void) {
    int fd = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
    if (fd < 0) return -1;
    int large = 1 << 24;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &large, sizeof large);
    struct sockaddr_in self = local(0);
    struct icmphdr *echo = (void *)block;
    echo->type = ICMP_ECHO;
    for (int i = 0; i < 400; i++) {
        sendto(fd, block, 16000, MSG_DONTWAIT, (void *)&self, sizeof self);
    }
    return 0;
}

static int udp(void) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0) return -1;
    struct sockaddr_in self = local(0);
    socklen_t length = sizeof self;
    if (bind(fd, (void *)&self, length) || getsockname(fd, (void *)&self, &length)) return -1;
    for (int i = 0; i < 40; i++) sendto(fd, block, 16000, MSG_DONTWAIT, (void *)&self, length);
    return 0;
}

static int listener = -1;
static struct sockaddr_in listening;

static int listen_anew(void) {
    listener = socket(AF_INET, SOCK_STREAM, 0);
    listening = local(0);
    socklen_t length = sizeof listening;
    if (listener < 0 || bind(listener, (void *)&listening, length) || listen(listener, 4096)) return -1;
    return getsockname(listener, (void *)&listening, &length);
}

static int tcp_accepted(void) {
    if (listener < 0 && listen_anew()) return -1;
    int client = socket(AF_INET, SOCK_STREAM, 0);
    if (client < 0 || connect(client, (void *)&listening, sizeof listening)) return -1;
    if (accept(listener, 0, 0) < 0) return -1;
    return fill(client, 0);
}

// Nobody accepts, and the client closes: what is left is the listener's.
static int tcp_unaccepted(void) {
    if (turn % 4000 == 0 && listen_anew()) return -1;
    int client = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (client < 0) return -1;
    connect(client, (void *)&listening, sizeof listening);
    fill(client, 0);
    int full = 0;
    socklen_t length = sizeof full;
    struct tcp_info info;
    length = sizeof info;
    if (!getsockopt(client, IPPROTO_TCP, TCP_INFO, &info, &length)) full = info.tcpi_state == TCP_SYN_SENT;
    close(client);
    // The queue is full: on to the next listener.
    return full ? listen_anew() : 0;
}

static int unix_stream(void) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return -1;
    return fill(pair[0], 0);
}

static int unix_datagrams(void) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair)) return -1;
    return fill(pair[0], 0);
}

// Descriptors in flight that are not open anywhere else.
static int unix_descriptors(void) {
    static int pair[2], sent;
    if (turn == 0 || sent > 200) {
        sent = 0;
        if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair)) return -1;
    }
    int fd = open("/tmp", O_RDONLY | O_DIRECTORY);
    if (fd < 0) return -1;
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(sizeof fd)];
    } control = {{CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
    struct iovec one = {block, 1};
    struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    int failed = sendmsg(pair[0], &message, MSG_DONTWAIT) < 0;
    close(fd);
    if (failed) {
        if (errno != EAGAIN) return -1;
        sent = 1000;
    }
    sent++;
    return 0;
}

static int pipes(void) {
    int pair[2];
    if (pipe2(pair, O_NONBLOCK)) return -1;
    fcntl(pair[1], F_SETPIPE_SZ, 1 << 20);
    while (write(pair[1], block, sizeof block) > 0) {
    }
    return 0;
}

static int epolls(void) {
    static int watched[64];
    if (turn == 0)
        for (int i = 0; i < 64; i++) watched[i] = eventfd(0, 0);
    int fd = epoll_create1(0);
    if (fd < 0) return -1;
    for (int i = 0; i < 64; i++) {
        struct epoll_event event = {EPOLLIN};
        if (epoll_ctl(fd, EPOLL_CTL_ADD, watched[i], &event)) return -1;
    }
    return 0;
}

static int eventfds(void) { return eventfd(0, 0) < 0 ? -1 : 0; }

static int timerfds(void) {
    int fd = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec never = {.it_value.tv_sec = 1000000};
    return fd < 0 ? -1 : timerfd_settime(fd, 0, &never, 0);
}

static int inotify_instances(void) { return inotify_init() < 0 ? -1 : 0; }

static int inotify_watches(void) {
    static int fd;
    if (turn == 0) fd = inotify_init();
    char name[64];
    snprintf(name, sizeof name, "/tmp/w%ld", turn);
    int file = open(name, O_CREAT | O_WRONLY, 0600);
    if (file < 0) return -1;
    close(file);
    return inotify_add_watch(fd, name, IN_ALL_EVENTS) < 0 ? -1 : 0;
}

static int posix_timers(void) {
    struct sigevent none = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    timer_t timer;
    return timer_create(CLOCK_MONOTONIC, &none, &timer);
}

static int queued_signals(void) {
    static sigset_t all;
    if (turn == 0) {
        sigfillset(&all);
        sigprocmask(SIG_BLOCK, &all, 0);
    }
    return sigqueue(getpid(), SIGRTMIN, (union sigval){0});
}

static int posix_messages(void) {
    static mqd_t queue;
    static int left;
    if (left == 0) {
        char name[32];
        snprintf(name, sizeof name, "/q%ld", turn);
        struct mq_attr attributes = {.mq_maxmsg = 10, .mq_msgsize = 8192};
        queue = mq_open(name, O_CREAT | O_RDWR | O_NONBLOCK, 0600, &attributes);
        if (queue == (mqd_t)-1) return -1;
        left = 10;
    }
    left--;
    return mq_send(queue, block, 8192, 0);
}

static int sysv_messages(void) {
    static int queue = -1;
    struct {
        long type;
        char text[8000];
    } message = {1, {0}};
    if (queue >= 0 && msgsnd(queue, &message, sizeof message.text, IPC_NOWAIT) == 0) return 0;
    queue = msgget(IPC_PRIVATE, 0600);
    return queue < 0 ? -1 : 0;
}

static int sysv_semaphores(void) {
    int set = semget(IPC_PRIVATE, 250, 0600);
    if (set < 0) return -1;
    struct sembuf up = {0, 1, SEM_UNDO};
    return semop(set, &up, 1);
}

static int sysv_memory(void) {
    int id = shmget(IPC_PRIVATE, 1 << 20, 0600);
    char *at = id < 0 ? (void *)-1 : shmat(id, 0, 0);
    if (at == (void *)-1) return -1;
    memset(at, 1, 1 << 20);
    return shmdt(at);
}

static int byte_locks(void) {
    static int fd, at;
    if (at % 4000 == 0) {
        char name[32];
        snprintf(name, sizeof name, "/tmp/l%ld", turn);
        fd = open(name, O_CREAT | O_RDWR, 0600);
        at = 0;
        if (fd < 0) return -1;
    }
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 2 * at++, .l_len = 1};
    return fcntl(fd, F_SETLK, &lock);
}

static int open_files(void) {
    int fd = open("/tmp", O_RDONLY | O_DIRECTORY);
    return fd < 0 ? -1 : flock(fd, LOCK_SH);
}

static int leases(void) {
    int fd = open("/tmp/lease", O_CREAT | O_RDONLY, 0600);
    return fd < 0 ? -1 : fcntl(fd, F_SETLEASE, F_RDLCK);
}

static int directory_marks(void) {
    int fd = open("/tmp", O_RDONLY | O_DIRECTORY);
    return fd < 0 ? -1 : fcntl(fd, F_NOTIFY, DN_CREATE | DN_MULTISHOT);
}

static int terminals(void) {
    int fd = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK);
    if (fd < 0) return -1;
    while (write(fd, block, 4096) > 0) {
    }
    return 0;
}

static int missing_names(void) {
    char name[64];
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "/tmp/there-is-no-such-file-%ld-%d", turn, i);
        access(name, F_OK);
    }
    return 0;
}

static int small_files(void) {
    char name[64];
    snprintf(name, sizeof name, "/tmp/f%ld", turn);
    int fd = open(name, O_CREAT | O_WRONLY, 0600);
    if (fd < 0) return -1;
    return close(fd);
}

static int attributes_of_files(void) {
    char name[64];
    if (turn == 0) close(open("/tmp/x", O_CREAT | O_WRONLY, 0600));
    snprintf(name, sizeof name, "user.%ld", turn);
    return setxattr("/tmp/x", name, block, 60000, 0);
}

static int page_tables(void) {
    // One page in each 2 MiB: a page of table for each.
    static char *at;
    if (turn % 4096 == 0) {
        at = mmap(0, 4096L << 21, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) return -1;
        madvise(at, 4096L << 21, MADV_NOHUGEPAGE);
    }
    // Reading maps the page of zeros, which is everybody's.
    volatile char *place = at + ((turn % 4096) << 21);
    (void)*place;
    return 0;
}

static int mappings(void) {
    int protection = turn % 2 ? PROT_READ : PROT_NONE;
    return mmap(0, 4096, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0;
}

static int named_mappings(void) {
    char name[80];
    snprintf(name, sizeof name, "%070ld", turn);
    void *at = mmap(0, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return -1;
    return prctl(0x53564d41, 0, at, 4096, name);
}

static int processes(void) {
    pid_t pid = fork();
    if (pid == 0) {
        pause();
        _exit(0);
    }
    return pid < 0 ? -1 : 0;
}

static int memory_files(void) {
    int fd = memfd_create("probe", 0);
    return fd < 0 || write(fd, block, sizeof block) < 0 ? -1 : 0;
}

static int process_descriptors(void) { return syscall(SYS_pidfd_open, getpid(), 0) < 0 ? -1 : 0; }

static int locked_memory(void) {
    void *at = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return at == MAP_FAILED ? -1 : mlock(at, 65536);
}

static int landlock_rules(void) {
    struct landlock_ruleset_attr attributes = {.handled_access_fs = LANDLOCK_ACCESS_FS_READ_FILE};
    int rules = syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0);
    if (rules < 0) return -1;
    int parent = open("/tmp", O_PATH);
    struct landlock_path_beneath_attr beneath = {LANDLOCK_ACCESS_FS_READ_FILE, parent};
    return syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0);
}

static int names_of_sockets(void) {
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path + 1, 100, "%099ld", turn);
    return fd < 0 ? -1 : bind(fd, (void *)&name, sizeof name);
}

static int socket_filters(void) {
    static struct sock_filter code[2000];
    for (int i = 0; i < 2000; i++) code[i] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_IMM, i);
    code[1999] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, 0);
    struct sock_fprog program = {2000, code};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    return fd < 0 ? -1 : setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program);
}

static int call_filters(void) {
    static struct sock_filter code[1] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {1, code};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}

static int memberships(void) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct ip_mreqn group = {.imr_multiaddr.s_addr = htonl(0xe8000000 + turn), .imr_ifindex = 1};
    return fd < 0 ? -1 : setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group);
}

static int signatures(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct tcp_md5sig key = {.tcpm_keylen = 16};
    struct sockaddr_in peer = local(1);
    memcpy(&key.tcpm_addr, &peer, sizeof peer);
    return fd < 0 ? -1 : setsockopt(fd, IPPROTO_TCP, TCP_MD5SIG, &key, sizeof key);
}

static int requests_of_aio(void) {
    unsigned long context = 0;
    return syscall(SYS_io_setup, 4096, &context);
}

static int rings(void) { return syscall(425, 64, block) < 0 ? -1 : 0; }
static int keys(void) { return syscall(SYS_add_key, "user", "probe", "x", 1, -4) < 0 ? -1 : 0; }
static int programs_of_bpf(void) { return syscall(SYS_bpf, 0, block, 64) < 0 ? -1 : 0; }
static int namespaces(void) { return unshare(CLONE_NEWUSER); }
static int mounts(void) { return syscall(SYS_mount, "x", "/tmp", "tmpfs", 0, 0); }
static int fault_descriptors(void) { return syscall(SYS_userfaultfd, 0) < 0 ? -1 : 0; }

static const struct {
    const char *name;
    int (*take)(void);
} kinds[] = {
#define KIND(name) {#name, name}
    KIND(netlink), KIND(ping), KIND(udp), KIND(tcp_accepted), KIND(tcp_unaccepted), KIND(unix_stream),
    KIND(unix_datagrams), KIND(unix_descriptors), KIND(names_of_sockets), KIND(pipes), KIND(epolls), KIND(eventfds),
    KIND(timerfds), KIND(inotify_instances), KIND(inotify_watches), KIND(posix_timers), KIND(queued_signals),
    KIND(posix_messages), KIND(sysv_messages), KIND(sysv_semaphores), KIND(sysv_memory), KIND(byte_locks),
    KIND(open_files), KIND(terminals), KIND(missing_names), KIND(small_files), KIND(attributes_of_files),
    KIND(page_tables), KIND(mappings), KIND(named_mappings), KIND(processes), KIND(memory_files),
    KIND(process_descriptors), KIND(locked_memory), KIND(landlock_rules), KIND(leases), KIND(directory_marks),
    KIND(socket_filters), KIND(call_filters), KIND(memberships), KIND(signatures), KIND(requests_of_aio), KIND(rings),
    KIND(keys), KIND(programs_of_bpf), KIND(namespaces), KIND(mounts), KIND(fault_descriptors),
};

static uint64_t free_memory(void) {
    struct sysinfo info;
    sysinfo(&info);
    return (uint64_t)info.freeram * info.mem_unit;
}

int main(int count, char **arguments) {
    size_t all = sizeof kinds / sizeof *kinds;
    if (count < 2) {
        for (size_t i = 0; i < all; i++) puts(kinds[i].name);
        return 0;
    }
    const char *mib = getenv("PROBE_MIB"), *seconds = getenv("PROBE_SECONDS");
    uint64_t most = (mib ? strtoull(mib, 0, 10) : 64) << 20;
    time_t until = time(0) + (seconds ? atol(seconds) : 10);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    for (size_t i = 0; i < all; i++) {
        if (strcmp(kinds[i].name, arguments[1])) continue;
        uint64_t before = free_memory();
        int refused = 0, children = 0;
        for (turn = 0; turn < 4000000; turn++) {
            if (kinds[i].take()) {
                refused = errno;
                // What a process may have open is used up: another one goes on, up to eight.
                if (refused != EMFILE || children == 8) break;
                pid_t pid = fork();
                if (pid < 0) break;
                if (pid > 0) {
                    // This one holds on to what it has.
                    for (;;) pause();
                }
                for (int fd = 3; fd < (int)files.rlim_max; fd++) close(fd);
                listener = -1;
                children++;
                turn--;
                continue;
            }
            uint64_t now = free_memory();
            if (now + most < before || ((turn & 63) == 0 && time(0) > until)) {
                turn++;
                break;
            }
        }
        printf("%s %ld %d\n", kinds[i].name, turn, refused);
        fflush(stdout);
        for (;;) pause();
    }
    fprintf(stderr, "no kind %s\n", arguments[1]);
    return 2;
}
