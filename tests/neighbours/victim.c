// Measures what a container has, over and over: one line of five figures for each round, all larger when there is more.
//   loops of arithmetic, MiB of memory written, MiB written to /tmp and read, round trips over loopback, calls of fork
// each in 100 ms. The lines begin with "round".
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char block[1 << 20];

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static long arithmetic(void) {
    static volatile long sink;
    for (long i = 0; i < 100000; i++) sink += i;
    return 1;
}

static long memory(void) {
    char *at = mmap(0, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return 0;
    memset(at, 1, 4 << 20);
    munmap(at, 4 << 20);
    return 4;
}

static long files(void) {
    int fd = open("/tmp/victim", O_CREAT | O_RDWR | O_TRUNC, 0600);
    long done = 0;
    for (int i = 0; i < 4; i++) done += write(fd, block, sizeof block) > 0;
    lseek(fd, 0, SEEK_SET);
    for (int i = 0; i < 4; i++) done += read(fd, block, sizeof block) > 0;
    close(fd);
    return done;
}

static int pair[2];

static long network(void) {
    for (int i = 0; i < 10; i++) {
        char byte = 1;
        if (write(pair[0], &byte, 1) != 1 || read(pair[1], &byte, 1) != 1) return 0;
        if (write(pair[1], &byte, 1) != 1 || read(pair[0], &byte, 1) != 1) return 0;
    }
    return 10;
}

static long processes(void) {
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    return pid > 0 && waitpid(pid, 0, 0) == pid;
}

static long in(double seconds, long (*once)(void)) {
    long done = 0;
    double until = now() + seconds;
    while (now() < until) done += once();
    return done;
}

int main(int count, char **arguments) {
    long rounds = count > 1 ? atol(arguments[1]) : 10;
    struct sockaddr_in own = {.sin_family = AF_INET};
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof own;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&own, length) || getsockname(listener, (void *)&own, &length) || listen(listener, 1)) return 1;
    pair[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(pair[0], (void *)&own, length) || (pair[1] = accept(listener, 0, 0)) < 0) return 1;
    for (long i = 0; i < rounds; i++) {
        long a = in(0.1, arithmetic), m = in(0.1, memory), f = in(0.1, files), n = in(0.1, network), p = in(0.1, processes);
        printf("round %ld %ld %ld %ld %ld\n", a, m, f, n, p);
        fflush(stdout);
    }
    return 0;
}
