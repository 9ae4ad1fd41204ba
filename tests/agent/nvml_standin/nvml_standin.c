/* A stand-in for libnvidia-ml.so.1: what nvidia-ml-py calls is really called, where no GPU exists.
 *
 * The file named by NVML_STANDIN says what there is; it is looked at again whenever the devices are counted:
 *
 *   init CODE                                          nvmlInit fails with this code
 *   device UUID NAME MEM_BYTES BUS_ID MINOR NODE CODE  '_' in NAME is a space; NODE -1: not told; CODE: what every call on it answers (0: all is well)
 *   rows INDEX PENDING FAILED                          remapped memory rows; without the line: not supported
 *   link INDEX INDEX COUNT                             NVLinks between two devices
 *   switch INDEX COUNT                                 NVLinks from a device to the switch
 *   path INDEX INDEX LEVEL                             what two devices have in common on the bus; without the line: not supported
 *   recovery INDEX ACTION                              the recovery action; without the line: not supported
 *   xid INDEX NUMBER                                   reported once to who waits for events, when the line is new
 *   mig INDEX MOST                                     the device is cut into instances, MOST at most; without the line: not supported
 *   card INDEX                                         the device can be cut, as an 80 GB H100 can; what it is cut into is appended to this file by
 *                                                      the calls that do it: migmode INDEX MODE, gi INDEX GI PROFILE START SIZE, nogi INDEX GI,
 *                                                      ci INDEX GI CI NUMBER, noci INDEX GI CI
 *   fail INDEX CALL INSTANCES CODE                     enable, disable, create, compute, destroy, nocompute fail when there are so many GPU instances
 *   pending INDEX                                      switching MIG takes effect after a reset only
 *   process INDEX PID MEM_BYTES                        a process that uses the device
 *   mps_process INDEX PID MEM_BYTES                    one that goes through MPS: named by another question
 *   process_of UUID PID MEM_BYTES                      one that uses an instance
 *   mute INDEX                                         the device does not say who uses it
 *   instance INDEX PLACE UUID NAME GI CI SLICES MEM_MB an instance of a device
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15, UNKNOWN = 999, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { MAX_DEVICES = 16, MAX_LINKS = 36, TO_SWITCH = -1 };

typedef struct {
    int index, minor, node, code;
    int has_recovery, recovery;
    int has_rows, rows_pending, rows_failed;
    int links, peer[MAX_LINKS];
    int mute, can_cut, is_cut, is_pending;
    int mig_most, place, card, gpu_instance, compute_instance, slices;
    unsigned long long mem;
    char uuid[96], name[96], bus[32];
} device_t;

typedef struct { unsigned long long total, free, used; } memory_t;

typedef struct {
    char bus_legacy[16];
    unsigned int domain, bus, device, pci_device, pci_subsystem;
    char bus_id[32];
} pci_t;

static device_t devices[MAX_DEVICES];
static int count, init_code, initialized;
enum { MAX_INSTANCES = 64 };
static device_t instances[MAX_INSTANCES];
static int instance_count;
enum { MAX_PROCESSES = 64 };
static struct { char uuid[96]; unsigned int pid; unsigned long long mem; int mps; } processes[MAX_PROCESSES];
static int process_count;
enum { MAX_XIDS = 64 };
static int levels[MAX_DEVICES][MAX_DEVICES];
static int xids, xids_told, xid_device[MAX_XIDS], xid_number[MAX_XIDS];

enum { MAX_CUTS = 32, PROFILES = 6 };
typedef struct { unsigned int version; } versioned_t;
typedef struct { int card, id, profile, start, size, there; } gi_t;
typedef struct { int card, gi, id, number, there; } ci_t;
static gi_t gis[MAX_CUTS * 8];
static ci_t cis[MAX_CUTS * 8];
static int gi_count, ci_count;
static struct { int card, at, code; char call[16]; } fails[16];
static int fail_count;
static const struct { int number, id, slices, size; const char *name; int starts[8], places; unsigned long long mem_mb; } profiles[PROFILES] = {
    {4, 0, 7, 8, "MIG 7g.80gb", {0}, 1, 81920}, {3, 5, 4, 4, "MIG 4g.40gb", {0}, 1, 40960},
    {2, 9, 3, 4, "MIG 3g.40gb", {0, 4}, 2, 40960}, {1, 14, 2, 2, "MIG 2g.20gb", {0, 2, 4}, 3, 20480},
    {9, 15, 1, 2, "MIG 1g.20gb", {0, 2, 4, 6}, 4, 20480}, {0, 19, 1, 1, "MIG 1g.10gb", {0, 1, 2, 3, 4, 5, 6}, 7, 10240},
};

static int profile_of(int id) {
    for (int i = 0; i < PROFILES; i++) if (profiles[i].id == id) return i;
    return -1;
}

static int cut_line(const char *line) {
    int a, b, c, e, f;
    char word[16];
    if (sscanf(line, "card %d", &a) == 1 && a < count) devices[a].can_cut = 1;
    else if (sscanf(line, "migmode %d %d", &a, &b) == 2 && a < count) devices[a].is_cut = b;
    else if (sscanf(line, "pendingmode %d", &a) == 1 && a < count) devices[a].is_pending = 2;
    else if (sscanf(line, "pending %d", &a) == 1 && a < count) devices[a].is_pending = 1;
    else if (sscanf(line, "gi %d %d %d %d %d", &a, &b, &c, &e, &f) == 5) gis[gi_count++] = (gi_t){a, b, c, e, f, 1};
    else if (sscanf(line, "nogi %d %d", &a, &b) == 2) { for (int i = 0; i < gi_count; i++) if (gis[i].card == a && gis[i].id == b) gis[i].there = 0; }
    else if (sscanf(line, "ci %d %d %d %d", &a, &b, &c, &e) == 4) cis[ci_count++] = (ci_t){a, b, c, e, 1};
    else if (sscanf(line, "noci %d %d %d", &a, &b, &c) == 3) { for (int i = 0; i < ci_count; i++) if (cis[i].card == a && cis[i].gi == b && cis[i].id == c) cis[i].there = 0; }
    else if (sscanf(line, "fail %d %15s %d %d", &a, word, &b, &c) == 4 && fail_count < 16) {
        fails[fail_count].card = a; fails[fail_count].at = b; fails[fail_count].code = c; strcpy(fails[fail_count++].call, word);
    } else return 0;
    return 1;
}

static void show_cuts(void) {
    int place[MAX_DEVICES] = {0};
    for (int i = 0; i < ci_count; i++) {
        if (!cis[i].there || instance_count >= MAX_INSTANCES) continue;
        for (int g = 0; g < gi_count; g++) {
            if (!gis[g].there || gis[g].card != cis[i].card || gis[g].id != cis[i].gi) continue;
            device_t d = {0};
            int p = profile_of(gis[g].profile);
            d.card = cis[i].card; d.place = place[d.card]++; d.gpu_instance = gis[g].id; d.compute_instance = cis[i].id;
            d.slices = profiles[p].slices; d.mem = profiles[p].mem_mb;
            snprintf(d.uuid, sizeof d.uuid, "MIG-%08x-0000-1111-2222-%012x", d.card, i + 1);
            snprintf(d.name, sizeof d.name, "%.60s %s", devices[d.card].name, profiles[p].name);
            instances[instance_count++] = d;
        }
    }
    for (int i = 0; i < count; i++) if (devices[i].is_cut) devices[i].mig_most = 7;
}

static void append(const char *format, ...) {
    va_list arguments;
    FILE *file = fopen(getenv("NVML_STANDIN"), "a");
    va_start(arguments, format);
    vfprintf(file, format, arguments);
    va_end(arguments);
    fclose(file);
}

static void add_links(int from, int to, int number) {
    for (int i = 0; i < number && from >= 0 && from < count && devices[from].links < MAX_LINKS; i++)
        devices[from].peer[devices[from].links++] = to;
}

/* Threads call as they like: one reads the file at a time, and what it says stays as it is for all until it says something else. */
static char known[1 << 16], fresh[1 << 16];
static size_t known_size;
static int is_known;
static volatile int is_locked;

static void lock(void) { while (__sync_lock_test_and_set(&is_locked, 1)) sched_yield(); }
static void unlock(void) { __sync_lock_release(&is_locked); }

static int has_changed(void) {
    const char *path = getenv("NVML_STANDIN");
    FILE *file = path ? fopen(path, "r") : NULL;
    size_t size = file ? fread(fresh, 1, sizeof fresh, file) : 0;
    if (file) fclose(file);
    if (is_known && size == known_size && memcmp(fresh, known, size) == 0) return 0;
    memcpy(known, fresh, size);
    known_size = size;
    return is_known = 1;
}

static void parse(void) {
    FILE *file = known_size ? fmemopen(known, known_size, "r") : NULL;
    char line[512];
    count = 0;
    memset(processes, 0, sizeof processes);
    init_code = xids = instance_count = process_count = gi_count = ci_count = fail_count = 0;
    memset(devices, 0, sizeof devices);
    memset(levels, -1, sizeof levels);
    while (file && fgets(line, sizeof line, file)) {
        device_t d = {0};
        int a, b, n;
        if (sscanf(line, "init %d", &init_code) == 1 || cut_line(line)) continue;
        if (count < MAX_DEVICES && sscanf(line, "device %95s %95s %llu %31s %d %d %d", d.uuid, d.name, &d.mem, d.bus, &d.minor, &d.node, &d.code) == 7) {
            for (char *c = d.name; *c; c++) if (*c == '_') *c = ' ';
            d.index = count;
            devices[count++] = d;
        } else if (sscanf(line, "link %d %d %d", &a, &b, &n) == 3) {
            add_links(a, b, n);
            add_links(b, a, n);
        } else if (sscanf(line, "path %d %d %d", &a, &b, &n) == 3 && a < count && b < count) {
            levels[a][b] = levels[b][a] = n;
        } else if (sscanf(line, "switch %d %d", &a, &n) == 2) {
            add_links(a, TO_SWITCH, n);
        } else if (sscanf(line, "recovery %d %d", &a, &b) == 2 && a < count) {
            devices[a].has_recovery = 1;
            devices[a].recovery = b;
        } else if (sscanf(line, "mute %d", &a) == 1 && a < count) {
            devices[a].mute = 1;
        } else if (process_count < MAX_PROCESSES && sscanf(line, "process %d %d %llu", &a, &b, &d.mem) == 3 && a < count) {
            strcpy(processes[process_count].uuid, devices[a].uuid);
            processes[process_count].pid = (unsigned int)b;
            processes[process_count++].mem = d.mem;
        } else if (process_count < MAX_PROCESSES && sscanf(line, "mps_process %d %d %llu", &a, &b, &d.mem) == 3 && a < count) {
            strcpy(processes[process_count].uuid, devices[a].uuid);
            processes[process_count].pid = (unsigned int)b;
            processes[process_count].mps = 1;
            processes[process_count++].mem = d.mem;
        } else if (process_count < MAX_PROCESSES && sscanf(line, "process_of %95s %d %llu", d.uuid, &b, &d.mem) == 3) {
            strcpy(processes[process_count].uuid, d.uuid);
            processes[process_count].pid = (unsigned int)b;
            processes[process_count++].mem = d.mem;
        } else if (sscanf(line, "xid %d %d", &a, &b) == 2 && a < count && xids < MAX_XIDS) {
            xid_device[xids] = a;
            xid_number[xids++] = b;
        } else if (sscanf(line, "mig %d %d", &a, &b) == 2 && a < count) {
            devices[a].mig_most = b;
        } else if (instance_count < MAX_INSTANCES && sscanf(line, "instance %d %d %95s %95s %d %d %d %llu", &d.card, &d.place, d.uuid, d.name, &d.gpu_instance, &d.compute_instance, &d.slices, &d.mem) == 8) {
            for (char *c = d.name; *c; c++) if (*c == '_') *c = ' ';
            instances[instance_count++] = d;
        } else if (sscanf(line, "rows %d %d %d", &a, &b, &n) == 3 && a < count) {
            devices[a].has_rows = 1;
            devices[a].rows_pending = b;
            devices[a].rows_failed = n;
        }
    }
    if (file) fclose(file);
    show_cuts();
}

static void load(void) {
    lock();
    if (has_changed()) parse();
    unlock();
}

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    load();
    initialized = init_code == 0;
    return init_code;
}

int nvmlShutdown(void) {
    initialized = 0;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    switch (code) {
    case SUCCESS: return "Success";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case 19: return "In use by another client";
    case 23: return "Insufficient Resources";
    case NOT_FOUND: return "Not Found";
    case NOT_SUPPORTED: return "Not Supported";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

int nvmlDeviceGetCount_v2(unsigned int *answer) {
    if (!initialized) return UNINITIALIZED;
    load();
    *answer = (unsigned int)count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device_t **handle) {
    if (!initialized) return UNINITIALIZED;
    if ((int)index >= count) return INVALID_ARGUMENT;
    *handle = &devices[index];
    return devices[index].code;
}

static int text(const device_t *device, const char *value, char *answer, unsigned int length) {
    if (device->code) return device->code;
    snprintf(answer, length, "%s", value);
    return SUCCESS;
}

int nvmlDeviceGetUUID(device_t *d, char *answer, unsigned int length) { return text(d, d->uuid, answer, length); }
int nvmlDeviceGetName(device_t *d, char *answer, unsigned int length) { return text(d, d->name, answer, length); }

int nvmlDeviceGetMemoryInfo(device_t *d, memory_t *answer) {
    if (d->code) return d->code;
    *answer = (memory_t){d->mem, d->mem, 0};
    return SUCCESS;
}

static void pci(const char *bus, pci_t *answer) {
    memset(answer, 0, sizeof *answer);
    snprintf(answer->bus_id, sizeof answer->bus_id, "%s", bus);
}

int nvmlDeviceGetPciInfo_v3(device_t *d, pci_t *answer) {
    if (d->code) return d->code;
    pci(d->bus, answer);
    return SUCCESS;
}

int nvmlDeviceGetMinorNumber(device_t *d, unsigned int *answer) {
    if (d->code) return d->code;
    *answer = (unsigned int)d->minor;
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(device_t *d, unsigned int *corrected, unsigned int *uncorrected, unsigned int *pending, unsigned int *failed) {
    if (d->code) return d->code;
    if (!d->has_rows) return NOT_SUPPORTED;
    *corrected = *uncorrected = 0;
    *pending = (unsigned int)d->rows_pending;
    *failed = (unsigned int)d->rows_failed;
    return SUCCESS;
}

int nvmlDeviceGetMemoryAffinity(device_t *d, unsigned int words, unsigned long *nodes, unsigned int scope) {
    (void)scope;
    if (d->code) return d->code;
    if (d->node < 0) return NOT_SUPPORTED;
    memset(nodes, 0, words * sizeof *nodes);
    nodes[d->node / 64] = 1UL << d->node % 64;
    return SUCCESS;
}

int nvmlDeviceGetNvLinkState(device_t *d, unsigned int link, unsigned int *answer) {
    if (d->code) return d->code;
    if (d->links == 0) return NOT_SUPPORTED;
    if ((int)link >= d->links) return INVALID_ARGUMENT;
    *answer = 1;
    return SUCCESS;
}

int nvmlDeviceGetNvLinkRemoteDeviceType(device_t *d, unsigned int link, unsigned int *answer) {
    if ((int)link >= d->links) return INVALID_ARGUMENT;
    *answer = d->peer[link] == TO_SWITCH ? 2 : 0;
    return SUCCESS;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(device_t *d, unsigned int link, pci_t *answer) {
    if ((int)link >= d->links) return INVALID_ARGUMENT;
    pci(d->peer[link] == TO_SWITCH ? "00000000:FF:00.0" : devices[d->peer[link]].bus, answer);
    return SUCCESS;
}

int nvmlDeviceGetTopologyCommonAncestor(device_t *one, device_t *other, unsigned int *level) {
    if (one->code) return one->code;
    if (other->code) return other->code;
    if (levels[one->index][other->index] < 0) return NOT_SUPPORTED;
    *level = (unsigned int)levels[one->index][other->index];
    return SUCCESS;
}

/* --- MIG --- */

int nvmlDeviceGetMigMode(device_t *d, unsigned int *current, unsigned int *pending) {
    if (d->code) return d->code;
    load();
    *current = *pending = d->mig_most > 0;
    if (d->can_cut && d->is_pending && !d->is_cut) *pending = d->is_pending == 2;
    return d->mig_most || d->can_cut ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetMaxMigDeviceCount(device_t *d, unsigned int *most) {
    *most = (unsigned int)d->mig_most;
    return d->code;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device_t *d, unsigned int place, device_t **handle) {
    if (d->code) return d->code;
    for (int i = 0; i < instance_count; i++)
        if (instances[i].card == d->index && instances[i].place == (int)place) {
            *handle = &instances[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

typedef struct {
    unsigned int multiprocessors, copy, decoder, encoder, jpeg, ofa, gpu_slices, compute_slices;
    unsigned long long mem_mb;
} attributes_t;

int nvmlDeviceGetAttributes_v2(device_t *d, attributes_t *answer) {
    if (d->slices == 0) return NOT_SUPPORTED;
    *answer = (attributes_t){0, 0, 0, 0, 0, 0, (unsigned int)d->slices, (unsigned int)d->slices, d->mem};
    return SUCCESS;
}

int nvmlDeviceGetGpuInstanceId(device_t *d, unsigned int *id) { *id = (unsigned int)d->gpu_instance; return SUCCESS; }
int nvmlDeviceGetComputeInstanceId(device_t *d, unsigned int *id) { *id = (unsigned int)d->compute_instance; return SUCCESS; }

int nvmlDeviceGetHandleByUUID(const char *uuid, device_t **handle) {
    load();
    for (int i = 0; i < count; i++)
        if (strcmp(devices[i].uuid, uuid) == 0) { *handle = &devices[i]; return SUCCESS; }
    for (int i = 0; i < instance_count; i++)
        if (strcmp(instances[i].uuid, uuid) == 0) { *handle = &instances[i]; return SUCCESS; }
    return NOT_FOUND;
}

/* --- cutting --- */

enum { IN_USE = 19, INSUFFICIENT_RESOURCES = 23, RESET_REQUIRED = 16 };

static int instances_of(int card) {
    int found = 0;
    for (int i = 0; i < gi_count; i++) found += gis[i].there && gis[i].card == card;
    return found;
}

static int fault(int card, const char *call) {
    load();
    for (int i = 0; i < fail_count; i++)
        if (fails[i].card == card && strcmp(fails[i].call, call) == 0 && fails[i].at == instances_of(card)) return fails[i].code;
    return SUCCESS;
}

int nvmlDeviceSetMigMode(device_t *d, unsigned int mode, unsigned int *status) {
    int code = fault(d->index, mode ? "enable" : "disable");
    *status = SUCCESS;
    if (code) return code;
    if (!d->can_cut) return NOT_SUPPORTED;
    if (!mode && instances_of(d->index)) return IN_USE;
    if (d->is_pending) { d->is_pending = 2; *status = RESET_REQUIRED; append("pendingmode %d\n", d->index); return SUCCESS; }
    append("migmode %d %u\n", d->index, mode);
    load();
    return SUCCESS;
}

typedef struct {
    unsigned int version, id, p2p, slices, most, multiprocessors, copy, decoder, encoder, jpeg, ofa;
    unsigned long long mem_mb;
    char name[96];
} profile_info_t;

int nvmlDeviceGetGpuInstanceProfileInfoV(device_t *d, unsigned int number, profile_info_t *answer) {
    for (int i = 0; d->can_cut && i < PROFILES; i++)
        if (profiles[i].number == (int)number) {
            answer->id = (unsigned int)profiles[i].id;
            answer->slices = (unsigned int)profiles[i].slices;
            answer->most = (unsigned int)profiles[i].places;
            answer->mem_mb = profiles[i].mem_mb;
            snprintf(answer->name, sizeof answer->name, "%s", profiles[i].name);
            return SUCCESS;
        }
    return NOT_SUPPORTED;
}

typedef struct { unsigned int start, size; } placement_t;

int nvmlDeviceGetGpuInstancePossiblePlacements_v2(device_t *d, unsigned int id, placement_t *answer, unsigned int *number) {
    int p = profile_of((int)id);
    if (!d->can_cut || p < 0) return INVALID_ARGUMENT;
    for (int i = 0; answer && i < profiles[p].places; i++)
        answer[i] = (placement_t){(unsigned int)profiles[p].starts[i], (unsigned int)profiles[p].size};
    *number = (unsigned int)profiles[p].places;
    return SUCCESS;
}

int nvmlDeviceGetGpuInstances(device_t *d, unsigned int id, gi_t **answer, unsigned int *number) {
    *number = 0;
    load();
    for (int i = 0; i < gi_count; i++)
        if (gis[i].there && gis[i].card == d->index && gis[i].profile == (int)id) answer[(*number)++] = &gis[i];
    return SUCCESS;
}

int nvmlDeviceGetGpuInstanceById(device_t *d, unsigned int id, gi_t **answer) {
    load();
    for (int i = 0; i < gi_count; i++)
        if (gis[i].there && gis[i].card == d->index && gis[i].id == (int)id) { *answer = &gis[i]; return SUCCESS; }
    return NOT_FOUND;
}

typedef struct { device_t *device; unsigned int id, profile; placement_t place; } gi_info_t;

int nvmlGpuInstanceGetInfo(gi_t *g, gi_info_t *answer) {
    *answer = (gi_info_t){&devices[g->card], (unsigned int)g->id, (unsigned int)g->profile, {(unsigned int)g->start, (unsigned int)g->size}};
    return SUCCESS;
}

int nvmlDeviceCreateGpuInstanceWithPlacement(device_t *d, unsigned int id, const placement_t *place, gi_t **answer) {
    int code = fault(d->index, "create"), most = 0;
    if (code) return code;
    if (!d->is_cut) return NOT_SUPPORTED;
    for (int i = 0; i < gi_count; i++) {
        if (gis[i].card != d->index) continue;
        if (gis[i].id > most) most = gis[i].id;
        if (gis[i].there && gis[i].start < (int)(place->start + place->size) && (int)place->start < gis[i].start + gis[i].size) return INSUFFICIENT_RESOURCES;
    }
    append("gi %d %d %u %u %u\n", d->index, most + 1, id, place->start, place->size);
    return nvmlDeviceGetGpuInstanceById(d, (unsigned int)most + 1, answer);
}

int nvmlGpuInstanceDestroy(gi_t *g) {
    int card = g->card, id = g->id, code = fault(card, "destroy");
    if (code) return code;
    for (int i = 0; i < ci_count; i++) if (cis[i].there && cis[i].card == card && cis[i].gi == id) return IN_USE;
    append("nogi %d %d\n", card, id);
    return SUCCESS;
}

typedef struct { unsigned int version, id, slices, most, multiprocessors, copy, decoder, encoder, jpeg, ofa; char name[96]; } compute_profile_t;

int nvmlGpuInstanceGetComputeInstanceProfileInfoV(gi_t *g, unsigned int number, unsigned int engine, compute_profile_t *answer) {
    static const int slices[] = {1, 2, 3, 4, 7};
    (void)engine;
    if (number > 4 || slices[number] > profiles[profile_of(g->profile)].slices) return NOT_SUPPORTED;
    answer->id = number + 100; /* not the number */
    answer->slices = (unsigned int)slices[number];
    answer->most = (unsigned int)(profiles[profile_of(g->profile)].slices / slices[number]);
    return SUCCESS;
}

int nvmlGpuInstanceGetComputeInstances(gi_t *g, unsigned int id, ci_t **answer, unsigned int *number) {
    *number = 0;
    for (int i = 0; i < ci_count; i++)
        if (cis[i].there && cis[i].card == g->card && cis[i].gi == g->id && cis[i].number == (int)id - 100) answer[(*number)++] = &cis[i];
    return SUCCESS;
}

int nvmlGpuInstanceGetComputeInstanceById(gi_t *g, unsigned int id, ci_t **answer) {
    for (int i = 0; i < ci_count; i++)
        if (cis[i].there && cis[i].card == g->card && cis[i].gi == g->id && cis[i].id == (int)id) { *answer = &cis[i]; return SUCCESS; }
    return NOT_FOUND;
}

typedef struct { device_t *device; gi_t *instance; unsigned int id, profile; placement_t place; } ci_info_t;

int nvmlComputeInstanceGetInfo_v2(ci_t *c, ci_info_t *answer) {
    *answer = (ci_info_t){&devices[c->card], NULL, (unsigned int)c->id, (unsigned int)c->number + 100, {0, 0}};
    return SUCCESS;
}

int nvmlGpuInstanceCreateComputeInstance(gi_t *g, unsigned int id, ci_t **answer) {
    int card = g->card, gi = g->id, most = -1, code = fault(card, "compute"), used = 0;
    static const int slices_of[] = {1, 2, 3, 4, 7};
    if (code) return code;
    if (id < 100 || id > 104) return INVALID_ARGUMENT;
    for (int i = 0; i < ci_count; i++) if (cis[i].there && cis[i].card == card && cis[i].gi == gi) used += slices_of[cis[i].number];
    for (int i = 0; i < PROFILES; i++) if (profiles[i].id == g->profile && used + slices_of[id - 100] > profiles[i].slices) return INSUFFICIENT_RESOURCES;
    for (int i = 0; i < ci_count; i++) if (cis[i].card == card && cis[i].gi == gi && cis[i].id > most) most = cis[i].id;
    append("ci %d %d %d %d\n", card, gi, most + 1, (int)id - 100);
    load();
    *answer = &cis[ci_count - 1];
    return SUCCESS;
}

int nvmlComputeInstanceDestroy(ci_t *c) {
    int card = c->card, gi = c->gi, id = c->id, code = fault(card, "nocompute");
    if (code) return code;
    append("noci %d %d %d\n", card, gi, id);
    return SUCCESS;
}

/* --- processes --- */

typedef struct {
    unsigned int pid;
    unsigned long long mem;
    unsigned int gpu_instance, compute_instance;
} process_t;

static int running(device_t *d, unsigned int *number, process_t *answer, int mps) {
    unsigned int found = 0, room = answer ? *number : 0;
    load();
    if (d->code) return d->code;
    if (d->mute) return NOT_SUPPORTED;
    for (int i = 0; i < process_count; i++) {
        if (strcmp(processes[i].uuid, d->uuid) != 0 || processes[i].mps != mps) continue;
        if (found < room) answer[found] = (process_t){processes[i].pid, processes[i].mem, ~0u, ~0u};
        found++;
    }
    *number = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device_t *d, unsigned int *number, process_t *answer) {
    return running(d, number, answer, 0);
}

int nvmlDeviceGetMPSComputeRunningProcesses_v3(device_t *d, unsigned int *number, process_t *answer) {
    return running(d, number, answer, 1);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(device_t *d, unsigned int *number, process_t *answer) {
    (void)answer;
    *number = 0;
    return d->mute ? NOT_SUPPORTED : d->code;
}

/* --- health --- */

typedef struct {
    unsigned int field, scope;
    long long timestamp, latency;
    int type, result;
    union { double d; unsigned int ui; unsigned long ul; unsigned long long ull; } value;
} field_value_t;

enum { RECOVERY_ACTION = 230 };

int nvmlDeviceGetFieldValues(device_t *d, int number, field_value_t *values) {
    if (d->code) return d->code;
    for (int i = 0; i < number; i++) {
        values[i].result = values[i].field == RECOVERY_ACTION && d->has_recovery ? SUCCESS : NOT_SUPPORTED;
        values[i].value.ui = (unsigned int)d->recovery;
    }
    return SUCCESS;
}

typedef struct {
    device_t *device;
    unsigned long long type, data;
    unsigned int gpu_instance, compute_instance;
} event_t;

enum { XID_EVENT = 8 };
static int the_set;

int nvmlEventSetCreate(int **set) { *set = &the_set; return initialized ? SUCCESS : UNINITIALIZED; }
int nvmlEventSetFree(int *set) { (void)set; return SUCCESS; }
int nvmlDeviceGetSupportedEventTypes(device_t *d, unsigned long long *types) { *types = XID_EVENT; return d->code; }
int nvmlDeviceRegisterEvents(device_t *d, unsigned long long types, int *set) { (void)types; (void)set; return d->code; }

int nvmlEventSetWait_v2(int *set, event_t *event, unsigned int timeout_ms) {
    (void)set;
    for (unsigned int waited = 0;; waited += 10) {
        if (!initialized) return UNINITIALIZED;
        load();
        lock();
        if (xids < xids_told) xids_told = xids;
        int is_new = xids_told < xids;
        if (is_new) {
            memset(event, 0, sizeof *event);
            event->device = &devices[xid_device[xids_told]];
            event->type = XID_EVENT;
            event->data = (unsigned long long)xid_number[xids_told++];
        }
        unlock();
        if (is_new) return SUCCESS;
        if (waited >= timeout_ms) return TIMEOUT;
        usleep(10000);
    }
}
