/* Work for a device: commands are listed, and a list that was seen before is replayed from its
 * recording. Only this file inserts barriers. */
#ifndef GPTOSS_VULKAN_VULKAN_COMMAND_H
#define GPTOSS_VULKAN_VULKAN_COMMAND_H

#include "vulkan/vulkan_memory.h"
#include "vulkan/vulkan_pipeline.h"

/* A dispatch, or with num_bytes a copy; with VK_WHOLE_SIZE of them, zeros. All of it is compared,
 * so unused parts are zero. */
struct gptoss_vulkan_command {
    uint32_t timer;      /* which of the timings it counts for */
    bool joins_previous; /* needs nothing of the command before it: no barrier between */
    VkPipeline pipeline;
    uint32_t groups[3];
    uint32_t push_bytes;
    uint8_t push[GPTOSS_PUSH_BYTES];
    VkBuffer from, to;
    uint64_t from_offset, to_offset, num_bytes;
};

struct gptoss_vulkan_program {
    uint64_t hash;
    size_t count;
    struct gptoss_vulkan_command *commands;
    VkCommandBuffer recording;
};

#define GPTOSS_MAX_PROGRAMS 64

#define GPTOSS_MAX_TIMERS 16
#define GPTOSS_MAX_BEHIND 8

struct gptoss_vulkan_queue {
    struct gptoss_vulkan_device *device;
    VkPipelineLayout layout;
    VkCommandPool pool;
    VkFence fence;
    bool is_running, has_fence;        /* has_fence: the fence stands behind what runs */
    VkFence behind[GPTOSS_MAX_BEHIND]; /* of what start_behind started since the last wait */
    uint32_t num_behind;
    bool is_lost;                           /* the device is: nothing is asked of it any more */
    struct gptoss_vulkan_command *commands; /* listed */
    size_t count, capacity;
    struct gptoss_vulkan_program programs[GPTOSS_MAX_PROGRAMS];
    size_t num_programs;
    struct gptoss_vulkan_program once; /* the recording that is not kept */
    /* With timing: a timestamp after every command of the list that runs. */
    VkQueryPool queries;
    const struct gptoss_vulkan_program *running;
    _Atomic uint64_t nanoseconds[GPTOSS_MAX_TIMERS];
};

/* timing: whether commands are timed, one by one. */
enum gptoss_status gptoss_vulkan_queue_open(struct gptoss_vulkan_device *device,
                                            VkPipelineLayout layout, bool timing,
                                            struct gptoss_vulkan_queue *queue,
                                            struct gptoss_error *error);
void gptoss_vulkan_queue_close(struct gptoss_vulkan_queue *queue);

/* Lists a command, copied. GPTOSS_ERROR_MEMORY: no room for it. */
enum gptoss_status gptoss_vulkan_list(struct gptoss_vulkan_queue *queue,
                                      const struct gptoss_vulkan_command *command);
enum gptoss_status
gptoss_vulkan_list_copy(struct gptoss_vulkan_queue *queue, const struct gptoss_vulkan_memory *from,
                        uint64_t from_offset, const struct gptoss_vulkan_memory *to,
                        uint64_t to_offset, uint64_t num_bytes, bool joins_previous);
enum gptoss_status gptoss_vulkan_list_zeros(struct gptoss_vulkan_queue *queue,
                                            const struct gptoss_vulkan_memory *to);
/* The error of a list without room, for those who hand on none of their own. */
enum gptoss_status gptoss_vulkan_list_refused(struct gptoss_error *error);
/* GPTOSS_ERROR_DEVICE once a start or a wait found the device lost; those report it, too. */
enum gptoss_status gptoss_vulkan_check_lost(const struct gptoss_vulkan_queue *queue,
                                            struct gptoss_error *error);
/* Starts what is listed, after all that was started before. keep: whether to keep the recording. */
enum gptoss_status gptoss_vulkan_start(struct gptoss_vulkan_queue *queue, bool keep,
                                       struct gptoss_error *error);
/* The same, kept, but that it waits for nothing: what runs and what is listed share no recording.
 */
enum gptoss_status gptoss_vulkan_start_behind(struct gptoss_vulkan_queue *queue,
                                              struct gptoss_error *error);
/* Waits for what start_behind started as number `index` since the last wait for all, which this is
 * where it has no fence. */
enum gptoss_status gptoss_vulkan_wait_behind(struct gptoss_vulkan_queue *queue, uint32_t index,
                                             bool (*stop)(void *user), void *user,
                                             struct gptoss_error *error);
/* Waits for all that was started. stop, if not NULL, is asked every few milliseconds; true ends the
 * asking, not the work, and the result is GPTOSS_ERROR_INTERRUPTED. */
enum gptoss_status gptoss_vulkan_wait(struct gptoss_vulkan_queue *queue, bool (*stop)(void *user),
                                      void *user, struct gptoss_error *error);
/* Drops all recordings: memory they name is about to go. Nothing may be running. */
void gptoss_vulkan_forget(struct gptoss_vulkan_queue *queue);

#endif
