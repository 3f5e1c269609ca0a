// Does one thing as often as it can, from inside a container, until it is killed. One function for each kind: what a
// neighbour could feel. "storm" alone prints the kinds.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char block[1 << 16];
static char *self;
static int port;

static void spin(void) {
    for (volatile long i = 0; i < 1000000; i++) {
    }
}

static void fork_storm(void) {
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    if (pid > 0) waitpid(pid, 0, 0);
}

static void fork_bomb(void) {
    pid_t pid = fork();
    if (pid == 0) return;
    while (waitpid(-1, 0, WNOHANG) > 0) {
    }
}

static void exec_storm(void) {
    pid_t pid = vfork();
    if (pid == 0) {
        execl(self, self, "nothing", (char *)0);
        _exit(1);
    }
    if (pid > 0) waitpid(pid, 0, 0);
}

static void zombies(void) {
    if (fork() == 0) _exit(0);
}

static void *nothing(void *unused) { return unused; }

static void thread_storm(void) {
    pthread_t thread;
    if (!pthread_create(&thread, 0, nothing, 0)) pthread_join(thread, 0);
}

static void handler(int number) { (void)number; }

static void signal_storm(void) {
    signal(SIGUSR1, handler);
    kill(getpid(), SIGUSR1);
}

static void signal_everybody(void) {
    signal(SIGUSR1, SIG_IGN);
    kill(-1, SIGUSR1);
}

static void futex_storm(void) {
    static uint32_t word;
    syscall(SYS_futex, &word, FUTEX_WAKE, 1000000, 0, 0, 0);
}

static void yield_storm(void) { sched_yield(); }

static void membarrier_storm(void) { syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0); }

static void membarrier_fast(void) {
    static int registered;
    if (!registered) registered = !syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0);
    syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0);
}

static void mapping_storm(void) {
    void *at = mmap(0, 1 << 22, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (at != MAP_FAILED) munmap(at, 1 << 22);
}

static void protection_storm(void) {
    static char *at;
    if (!at) at = mmap(0, 1 << 22, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    mprotect(at, 1 << 22, PROT_READ);
    mprotect(at, 1 << 22, PROT_READ | PROT_WRITE);
    memset(at, 1, 1 << 22);
}

// Beyond the limit again and again: the kernel reclaims and kills in this container.
static void memory_at_the_limit(void) {
    pid_t pid = fork();
    if (pid == 0) {
        for (;;) {
            char *at = mmap(0, 1 << 24, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (at == MAP_FAILED) _exit(0);
            memset(at, 1, 1 << 24);
        }
    }
    if (pid > 0) waitpid(pid, 0, 0);
}

static void memory_bandwidth(void) {
    static char *at;
    size_t size = 64 << 20;
    if (!at) at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(at, (int)time(0), size);
}

static void tmpfs_writes(void) {
    int fd = open("/tmp/storm", O_CREAT | O_WRONLY | O_TRUNC, 0600);
    for (int i = 0; i < 64; i++)
        if (write(fd, block, sizeof block) < 0) break;
    close(fd);
}

static void files_made_and_removed(void) {
    close(open("/tmp/a", O_CREAT | O_WRONLY, 0600));
    rename("/tmp/a", "/tmp/b");
    unlink("/tmp/b");
}

static void directories_read(void) {
    DIR *directory = opendir("/proc");
    if (!directory) return;
    while (readdir(directory)) {
    }
    closedir(directory);
}

static void missing_names(void) {
    static long turn;
    char name[64];
    snprintf(name, sizeof name, "/no-such-file-%ld", turn++);
    access(name, F_OK);
}

static void image_read(void) {
    int fd = open(self, O_RDONLY);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    while (read(fd, block, sizeof block) > 0) {
    }
    close(fd);
}

static void image_synced(void) {
    static int fd;
    if (!fd) fd = open(self, O_RDONLY);
    fsync(fd);
}

static void file_system_synced(void) {
    static int fd;
    if (!fd) fd = open(self, O_RDONLY);
    syncfs(fd);
}

static void host_synced(void) { syscall(SYS_sync); }

static void image_locked(void) {
    int fd = open(self, O_RDONLY);
    flock(fd, LOCK_EX);
    flock(fd, LOCK_UN);
    close(fd);
}

static void image_watched(void) {
    static int fd;
    if (!fd) fd = inotify_init1(IN_NONBLOCK);
    int watch = inotify_add_watch(fd, self, IN_ALL_EVENTS);
    close(open(self, O_RDONLY));
    while (read(fd, block, sizeof block) > 0) {
    }
    inotify_rm_watch(fd, watch);
}

static void read_all(const char *name) {
    int fd = open(name, O_RDONLY);
    if (fd < 0) return;
    while (read(fd, block, sizeof block) > 0) {
    }
    close(fd);
}

static void files_of_proc(void) {
    static const char *names[] = {"/proc/kallsyms", "/proc/zoneinfo", "/proc/vmstat", "/proc/self/smaps",
                                  "/proc/self/mountinfo", "/proc/net/protocols", "/proc/modules", "/proc/self/stat"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) read_all(names[i]);
}

static void locks_of_the_host(void) { read_all("/proc/locks"); }

static void random_numbers(void) { getrandom(block, sizeof block, 0); }

static void sockets_made(void) {
    close(socket(AF_INET, SOCK_STREAM, 0));
    close(socket(AF_UNIX, SOCK_STREAM, 0));
}

static void netlink_sockets_made(void) { close(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE)); }

// Each takes the lock that all changes of networks of the host need.
static void interfaces_asked(void) {
    static int fd;
    if (!fd) fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    struct {
        struct nlmsghdr head;
        char body[16];
    } ask = {{sizeof ask, 18, NLM_F_REQUEST | NLM_F_DUMP, 1, 0}, {0}};
    send(fd, &ask, sizeof ask, MSG_DONTWAIT);
    while (recv(fd, block, sizeof block, MSG_DONTWAIT) > 0) {
    }
}

static void ethernet_asked(void) {
    static int fd;
    if (!fd) fd = socket(AF_INET, SOCK_DGRAM, 0);
    char request[64] = "lo";
    ioctl(fd, 0x8913, request);
}

static void datagrams(void) {
    static int pair[2];
    if (!pair[0] && socketpair(AF_UNIX, SOCK_DGRAM, 0, pair)) return;
    send(pair[0], block, 4096, MSG_DONTWAIT);
    recv(pair[1], block, sizeof block, MSG_DONTWAIT);
}

static void loopback(void) {
    static int fd;
    static struct sockaddr_in own = {AF_INET};
    socklen_t length = sizeof own;
    if (!fd) {
        fd = socket(AF_INET, SOCK_DGRAM, 0);
        own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        bind(fd, (void *)&own, length);
        getsockname(fd, (void *)&own, &length);
    }
    sendto(fd, block, 32000, MSG_DONTWAIT, (void *)&own, length);
    recv(fd, block, sizeof block, MSG_DONTWAIT);
}

static int connected(void) {
    struct sockaddr_in proxy = {.sin_family = AF_INET, .sin_port = htons(port)};
    proxy.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (void *)&proxy, sizeof proxy)) {
        close(fd);
        return -1;
    }
    return fd;
}

static void proxy_connections(void) {
    int fd = connected();
    if (fd >= 0) close(fd);
}

static void proxy_refusals(void) {
    int fd = connected();
    if (fd < 0) return;
    static const char ask[] = "CONNECT nowhere.test:443 HTTP/1.1\r\nhost: nowhere.test\r\n\r\n";
    send(fd, ask, sizeof ask - 1, MSG_NOSIGNAL);
    struct pollfd polled = {fd, POLLIN, 0};
    poll(&polled, 1, 100);
    recv(fd, block, sizeof block, MSG_DONTWAIT);
    close(fd);
}

static void proxy_held(void) {
    int fd = connected();
    if (fd >= 0) send(fd, "GET ", 4, MSG_NOSIGNAL);
    else usleep(1000);
}

static void output(void) {
    if (write(1, block, sizeof block) < 0) _exit(0);
}

static void lines_of_output(void) {
    if (write(1, "x\n", 2) < 0) _exit(0);
}

static void errors(void) {
    if (write(2, block, 4096) < 0) _exit(0);
}

static void terminals_made(void) { close(open("/dev/ptmx", O_RDWR | O_NOCTTY)); }

static void names_changed(void) {
    static int turn;
    snprintf(block, 16, "storm%d", turn++);
    prctl(PR_SET_NAME, block);
}

static void priorities(void) {
    static int turn;
    struct sched_param zero = {0};
    sched_setscheduler(0, turn++ % 2 ? SCHED_BATCH : SCHED_OTHER, &zero);
    cpu_set_t all;
    memset(&all, 0xff, sizeof all);
    sched_setaffinity(0, sizeof all, &all);
}

static void namespaces(void) { unshare(CLONE_NEWUSER | CLONE_NEWNS); }

static void faults(void) {
    pid_t pid = fork();
    if (pid == 0) {
        *(volatile int *)8 = 1;
        _exit(0);
    }
    if (pid > 0) waitpid(pid, 0, 0);
}

static void unknown_calls(void) {
    for (int i = 463; i < 600; i++) syscall(i);
}

static const struct {
    const char *name;
    void (*once)(void);
} kinds[] = {
#define KIND(name) {#name, name}
    KIND(spin), KIND(fork_storm), KIND(fork_bomb), KIND(exec_storm), KIND(zombies), KIND(thread_storm),
    KIND(signal_storm), KIND(signal_everybody), KIND(futex_storm), KIND(yield_storm), KIND(membarrier_storm),
    KIND(membarrier_fast), KIND(mapping_storm), KIND(protection_storm), KIND(memory_at_the_limit),
    KIND(memory_bandwidth), KIND(tmpfs_writes), KIND(files_made_and_removed), KIND(directories_read),
    KIND(missing_names), KIND(image_read), KIND(image_synced), KIND(file_system_synced), KIND(host_synced),
    KIND(image_locked), KIND(image_watched), KIND(files_of_proc), KIND(locks_of_the_host), KIND(random_numbers),
    KIND(sockets_made), KIND(netlink_sockets_made), KIND(interfaces_asked), KIND(ethernet_asked), KIND(datagrams),
    KIND(loopback), KIND(proxy_connections), KIND(proxy_refusals), KIND(proxy_held), KIND(output),
    KIND(lines_of_output), KIND(errors), KIND(terminals_made), KIND(names_changed), KIND(priorities), KIND(namespaces),
    KIND(faults), KIND(unknown_calls),
};

int main(int count, char **arguments) {
    size_t all = sizeof kinds / sizeof *kinds;
    self = "/storm";
    const char *proxy = getenv("HTTP_PROXY"), *colon = proxy ? strrchr(proxy, ':') : 0;
    port = colon ? atoi(colon + 1) : 3128;
    if (count < 2) {
        for (size_t i = 0; i < all; i++) puts(kinds[i].name);
        return 0;
    }
    if (!strcmp(arguments[1], "nothing")) return 0;
    for (size_t i = 0; i < all; i++)
        if (!strcmp(kinds[i].name, arguments[1]))
            for (;;) kinds[i].once();
    fprintf(stderr, "no kind %s\n", arguments[1]);
    return 2;
}
