// A small server that leaks, for the demonstration: it serves synthetic requests from an event loop and grows by about
// 3 MiB/s. Usage: leaky-server [--json] [SECONDS]
//
//   sessions   the leak: a client that vanishes without logging out leaves its session in the table for good
//   cache      grows at first, then is level at its limit
//   responses  buffers that come and go with each request: churn, no growth
//   log        a ring of segments mapped directly, level once it is full
//
// It prints its pid and runs for SECONDS (for ever by default). With --json it speaks the protocol of target.h instead:
// a ready line, the truth for each `g`, its end on `q`; it is busy all the time.
#include "target.h"
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

#define TICKS_PER_SECOND 50
#define REQUESTS_PER_TICK 32
#define CACHE_ENTRIES 3000
#define SESSION_BUCKETS 4096
#define ATTRIBUTES 6
#define LOG_SEGMENT_BYTES ((size_t)128 << 10)
#define LOG_SEGMENTS 8

DEFINE_TALLY(session_create);
DEFINE_TALLY(store_attributes);
DEFINE_TALLY(cache_insert);
DEFINE_TALLY(render_response);
DEFINE_TALLY(read_request_body);
DEFINE_MAPPING_TALLY(log_rotate, TALLY_ANON);

struct attribute {
    struct attribute *next;
    size_t size;
    char text[];
};

struct session {
    struct session *next;
    struct attribute *attributes;
    uint64_t id;
    char client[104];
};

struct request {
    enum { LOGIN, LOGOUT, LOOKUP } kind;
    uint64_t client;
    char *body;
    size_t body_size;
};

struct cache_entry {
    uint64_t key;
    char *value;
    size_t size;
};

static struct session *sessions[SESSION_BUCKETS];
static struct cache_entry cache[CACHE_ENTRIES];
static char *log_segments[LOG_SEGMENTS];
static size_t log_segment, log_used;
static uint64_t random_state = 0x9e3779b97f4a7c15;
static uint64_t next_client;

static uint64_t random_below(uint64_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % limit;
}

static void *checked(void *address)
{
    if (!address || address == MAP_FAILED) {
        perror("leaky-server");
        exit(1);
    }
    return address;
}

TRACED static void store_attributes(struct session *session)
{
    for (int i = 0; i < ATTRIBUTES; i++) {
        size_t size = sizeof(struct attribute) + 200 + random_below(600);
        struct attribute *attribute = (struct attribute *)checked(malloc(size));

        tally_allocated(&TALLY(store_attributes), size);
        memset(attribute, 'a', size);
        attribute->size = size;
        attribute->next = session->attributes;
        session->attributes = attribute;
    }
}

TRACED static struct session *session_create(uint64_t id)
{
    struct session *session = (struct session *)checked(calloc(1, sizeof(*session)));
    struct session **bucket = &sessions[id % SESSION_BUCKETS];

    tally_allocated(&TALLY(session_create), sizeof(*session));
    session->id = id;
    snprintf(session->client, sizeof(session->client), "client-%llu", (unsigned long long)id);
    session->next = *bucket;
    *bucket = session;
    store_attributes(session);
    return session;
}

TRACED static void session_destroy(uint64_t id)
{
    struct session **link = &sessions[id % SESSION_BUCKETS];
    struct session *session;

    while (*link && (*link)->id != id)
        link = &(*link)->next;
    session = *link;
    if (!session)
        return;
    *link = session->next;
    while (session->attributes) {
        struct attribute *attribute = session->attributes;

        session->attributes = attribute->next;
        tally_freed(&TALLY(store_attributes), attribute->size);
        free(attribute);
    }
    tally_freed(&TALLY(session_create), sizeof(*session));
    free(session);
}

TRACED static struct cache_entry *cache_insert(uint64_t key)
{
    struct cache_entry *entry = &cache[key % CACHE_ENTRIES];

    if (entry->value) {
        tally_freed(&TALLY(cache_insert), entry->size);
        free(entry->value);
    }
    entry->key = key;
    entry->size = 2000 + key % 8 * 512;
    entry->value = (char *)checked(malloc(entry->size));
    tally_allocated(&TALLY(cache_insert), entry->size);
    memset(entry->value, 'v', entry->size);
    return entry;
}

TRACED static struct cache_entry *cache_lookup(uint64_t key)
{
    struct cache_entry *entry = &cache[key % CACHE_ENTRIES];

    return entry->value && entry->key == key ? entry : cache_insert(key);
}

// The oldest segment goes when a new one comes.
TRACED static void log_rotate(void)
{
    log_segment = (log_segment + 1) % LOG_SEGMENTS;
    if (log_segments[log_segment]) {
        munmap(log_segments[log_segment], LOG_SEGMENT_BYTES);
        tally_freed(&TALLY(log_rotate), LOG_SEGMENT_BYTES);
        TALLY(log_rotate).resident -= LOG_SEGMENT_BYTES;
    }
    log_segments[log_segment] = (char *)checked(
        mmap(NULL, LOG_SEGMENT_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    tally_allocated(&TALLY(log_rotate), LOG_SEGMENT_BYTES);
    log_used = 0;
}

TRACED static void log_request(const struct request *request)
{
    char line[256];
    int length = snprintf(line, sizeof(line), "%08zu request kind=%d client=client-%llu body=%zu status=200\n",
                          log_used, (int)request->kind, (unsigned long long)request->client, request->body_size);
    char *segment;

    if (!log_segments[log_segment] || log_used + (size_t)length > LOG_SEGMENT_BYTES)
        log_rotate();
    segment = log_segments[log_segment];
    TALLY(log_rotate).resident +=
        ((log_used + (size_t)length + PAGE - 1) / PAGE - (log_used + PAGE - 1) / PAGE) * PAGE;
    memcpy(segment + log_used, line, (size_t)length);
    log_used += (size_t)length;
}

TRACED static void render_response(const struct request *request, const char *content, size_t size)
{
    size_t room = size + 512;
    char *response = (char *)checked(malloc(room));
    int header = snprintf(response, room, "HTTP/1.1 200 OK\r\nX-Client: %llu\r\nContent-Length: %zu\r\n\r\n",
                          (unsigned long long)request->client, size);

    tally_allocated(&TALLY(render_response), room);
    memcpy(response + header, content, size);
    tally_freed(&TALLY(render_response), room);
    free(response);
}

// Four clients of five vanish without logging out, and nothing ever expires their sessions; in the build with
// EXPIRE_SESSIONS, those of the last 64 clients are kept.
TRACED static void handle_login(const struct request *request)
{
    struct session *session = session_create(request->client);

    render_response(request, session->client, strlen(session->client));
#ifdef EXPIRE_SESSIONS
    session_destroy(request->client - 64);
#endif
}

TRACED static void handle_logout(const struct request *request)
{
    session_destroy(request->client);
    render_response(request, "bye", 3);
}

TRACED static void handle_lookup(const struct request *request)
{
    const struct cache_entry *entry = cache_lookup(random_below(2 * CACHE_ENTRIES));

    render_response(request, entry->value, entry->size);
}

TRACED static void read_request_body(struct request *request)
{
    request->body_size = 256 + random_below(4096);
    request->body = (char *)checked(malloc(request->body_size));
    tally_allocated(&TALLY(read_request_body), request->body_size);
    memset(request->body, 'b', request->body_size);
}

static void release_request_body(struct request *request)
{
    tally_freed(&TALLY(read_request_body), request->body_size);
    free(request->body);
}

TRACED static void handle_request(struct request *request)
{
    read_request_body(request);
    switch (request->kind) {
    case LOGIN:
        handle_login(request);
        break;
    case LOGOUT:
        handle_logout(request);
        break;
    default:
        handle_lookup(request);
    }
    log_request(request);
    release_request_body(request);
}

// Of eight requests five log in, two look something up, and one logs out the client that came last.
TRACED static void next_request(struct request *request, size_t i)
{
    request->kind = i % 8 == 7 ? LOGOUT : i % 4 == 1 ? LOOKUP : LOGIN;
    if (request->kind == LOGIN)
        next_client++;
    request->client = next_client;
}

TRACED static void accept_requests(void)
{
    for (size_t i = 0; i < REQUESTS_PER_TICK; i++) {
        struct request request = {LOOKUP, 0, NULL, 0};

        next_request(&request, i);
        handle_request(&request);
    }
}

static int watch(int epoll, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data = {.fd = fd}};

    if (fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
        checked(NULL);
    return fd;
}

static int open_timer(void)
{
    const struct itimerspec ticks = {{0, 1000000000 / TICKS_PER_SECOND}, {0, 1}};
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);

    timerfd_settime(fd, 0, &ticks, NULL);
    return fd;
}

static int open_stop_signals(void)
{
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    return signalfd(-1, &signals, SFD_CLOEXEC);
}

// True when the server is to end.
static int on_command(void)
{
    // Not target_command(), which waits for the next command behind the end of a line: the server goes on.
    char command = '\n';

    if (read(STDIN_FILENO, &command, 1) == 0)
        command = 'q';
    if (command == '\n' || command == ' ')
        return 0;
    if (command == 'g') {
        target_phase++;
        send_truth();
    } else if (command != 'q') {
        target_refuse(command);
    }
    return command == 'q';
}

// Runs for `ticks` ticks, or until a signal or, if `takes_commands`, the command `q`.
TRACED static void event_loop(uint64_t ticks, int takes_commands)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    int stop = watch(epoll, open_stop_signals());
    int timer = watch(epoll, open_timer());
    struct epoll_event event;
    uint64_t tick = 0, expirations;

    if (takes_commands)
        watch(epoll, STDIN_FILENO);
    while (tick < ticks) {
        if (epoll_wait(epoll, &event, 1, -1) != 1)
            continue; // interrupted
        if (event.data.fd == stop || (event.data.fd == STDIN_FILENO && on_command()))
            return;
        if (event.data.fd != timer || read(timer, &expirations, sizeof(expirations)) != sizeof(expirations))
            continue;
        accept_requests();
        tick++;
    }
}

int main(int argc, char **argv)
{
    int takes_commands = argc > 1 && strcmp(argv[1], "--json") == 0;
    uint64_t seconds = argument(argc, argv, 1 + takes_commands, 0);

    if (takes_commands) {
        target_ready();
    } else {
        printf("leaky-server: pid %d\n", (int)getpid());
        fflush(stdout);
        target_is_ready = 1;
    }
    event_loop(seconds ? seconds * TICKS_PER_SECOND : UINT64_MAX, takes_commands);
    return 0;
}
