#include "vulkan/vulkan_command.h"

#include <stdatomic.h>
#include <string.h>

#include "platform/allocator.h"
#include "platform/clock.h"
#include "status.h"

#define WAIT_NANOSECONDS 10000000u
#define SPIN_NANOSECONDS 5000000u
#define MAX_TIMED_COMMANDS 4096

enum gptoss_status gptoss_vulkan_queue_open(struct gptoss_vulkan_device *device,
                                            VkPipelineLayout layout, bool timing,
                                            struct gptoss_vulkan_queue *queue,
                                            struct gptoss_error *error) {
    *queue = (struct gptoss_vulkan_queue){.device = device, .layout = layout};
    const VkCommandPoolCreateInfo pool = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
        .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
        .queueFamilyIndex = device->queue_family,
    };
    const VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    const VkQueryPoolCreateInfo queries = {
        .sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
        .queryType = VK_QUERY_TYPE_TIMESTAMP,
        .queryCount = MAX_TIMED_COMMANDS + 1,
    };
    VkResult result = device->run.CreateCommandPool(device->handle, &pool, NULL, &queue->pool);
    if (result == VK_SUCCESS)
        result = device->run.CreateFence(device->handle, &fence, NULL, &queue->fence);
    for (size_t i = 0; result == VK_SUCCESS && i < GPTOSS_MAX_BEHIND; ++i)
        result = device->run.CreateFence(device->handle, &fence, NULL, &queue->behind[i]);
    if (result == VK_SUCCESS && timing && device->timestamp_nanoseconds > 0)
        result = device->run.CreateQueryPool(device->handle, &queries, NULL, &queue->queries);
    if (result == VK_SUCCESS)
        return GPTOSS_OK;
    gptoss_vulkan_queue_close(queue);
    return gptoss_vulkan_error(error, result, "making a command pool");
}

void gptoss_vulkan_queue_close(struct gptoss_vulkan_queue *queue) {
    const struct gptoss_vulkan_device *device = queue->device;
    if (device == NULL)
        return;
    device->run.DeviceWaitIdle(device->handle);
    gptoss_vulkan_forget(queue);
    if (queue->queries != VK_NULL_HANDLE)
        device->run.DestroyQueryPool(device->handle, queue->queries, NULL);
    if (queue->fence != VK_NULL_HANDLE)
        device->run.DestroyFence(device->handle, queue->fence, NULL);
    for (size_t i = 0; i < GPTOSS_MAX_BEHIND; ++i)
        if (queue->behind[i] != VK_NULL_HANDLE)
            device->run.DestroyFence(device->handle, queue->behind[i], NULL);
    if (queue->pool != VK_NULL_HANDLE)
        device->run.DestroyCommandPool(device->handle, queue->pool, NULL);
    gptoss_free(queue->commands);
    *queue = (struct gptoss_vulkan_queue){0};
}

/* ---- listing ---- */

enum gptoss_status gptoss_vulkan_list(struct gptoss_vulkan_queue *queue,
                                      const struct gptoss_vulkan_command *command) {
    if (queue->count == queue->capacity) {
        size_t capacity = queue->capacity > 0 ? 2 * queue->capacity : 256;
        struct gptoss_vulkan_command *commands = gptoss_allocate(capacity, sizeof *commands);
        if (commands == NULL)
            return GPTOSS_ERROR_MEMORY;
        if (queue->count > 0)
            memcpy(commands, queue->commands, queue->count * sizeof *commands);
        gptoss_free(queue->commands);
        queue->commands = commands;
        queue->capacity = capacity;
    }
    memcpy(&queue->commands[queue->count++], command, sizeof *command);
    return GPTOSS_OK;
}

enum gptoss_status
gptoss_vulkan_list_copy(struct gptoss_vulkan_queue *queue, const struct gptoss_vulkan_memory *from,
                        uint64_t from_offset, const struct gptoss_vulkan_memory *to,
                        uint64_t to_offset, uint64_t num_bytes, bool joins_previous) {
    struct gptoss_vulkan_command command;
    memset(&command, 0, sizeof command);
    command.joins_previous = joins_previous;
    command.from = from->buffer;
    command.to = to->buffer;
    command.from_offset = from_offset;
    command.to_offset = to_offset;
    command.num_bytes = num_bytes;
    return gptoss_vulkan_list(queue, &command);
}

enum gptoss_status gptoss_vulkan_list_zeros(struct gptoss_vulkan_queue *queue,
                                            const struct gptoss_vulkan_memory *to) {
    struct gptoss_vulkan_command command;
    memset(&command, 0, sizeof command);
    command.to = to->buffer;
    command.num_bytes = VK_WHOLE_SIZE;
    return gptoss_vulkan_list(queue, &command);
}

enum gptoss_status gptoss_vulkan_list_refused(struct gptoss_error *error) {
    return gptoss_error_memory(error, sizeof(struct gptoss_vulkan_command), "a list of commands");
}

/* ---- recording ---- */

static void record_barrier(const struct gptoss_vulkan_device *device, VkCommandBuffer recording) {
    const VkPipelineStageFlags stages =
        VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
    const VkMemoryBarrier barrier = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
        .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT,
        .dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT |
                         VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT,
    };
    device->run.CmdPipelineBarrier(recording, stages, stages, 0, 1, &barrier, 0, NULL, 0, NULL);
}

/* What the host reads after the fence. */
static void record_end_barrier(const struct gptoss_vulkan_device *device,
                               VkCommandBuffer recording) {
    const VkMemoryBarrier barrier = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
        .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT,
        .dstAccessMask = VK_ACCESS_HOST_READ_BIT,
    };
    device->run.CmdPipelineBarrier(
        recording, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT,
        VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &barrier, 0, NULL, 0, NULL);
}

static void record_commands(const struct gptoss_vulkan_queue *queue, VkCommandBuffer recording) {
    const struct gptoss_vulkan_functions *run = &queue->device->run;
    bool timed = queue->queries != VK_NULL_HANDLE && queue->count <= MAX_TIMED_COMMANDS;
    VkPipeline bound = VK_NULL_HANDLE;
    if (timed) {
        run->CmdResetQueryPool(recording, queue->queries, 0, (uint32_t)queue->count + 1);
        run->CmdWriteTimestamp(recording, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, queue->queries, 0);
    }
    for (size_t i = 0; i < queue->count; ++i) {
        const struct gptoss_vulkan_command *command = &queue->commands[i];
        if (!command->joins_previous)
            record_barrier(queue->device, recording);
        if (command->num_bytes == VK_WHOLE_SIZE) {
            run->CmdFillBuffer(recording, command->to, 0, VK_WHOLE_SIZE, 0);
        } else if (command->num_bytes > 0) {
            const VkBufferCopy copy = {command->from_offset, command->to_offset,
                                       command->num_bytes};
            run->CmdCopyBuffer(recording, command->from, command->to, 1, &copy);
        } else {
            if (command->pipeline != bound)
                run->CmdBindPipeline(recording, VK_PIPELINE_BIND_POINT_COMPUTE, command->pipeline);
            bound = command->pipeline;
            run->CmdPushConstants(recording, queue->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0,
                                  command->push_bytes, command->push);
            run->CmdDispatch(recording, command->groups[0], command->groups[1], command->groups[2]);
        }
        if (timed)
            run->CmdWriteTimestamp(recording, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, queue->queries,
                                   (uint32_t)i + 1);
    }
    record_end_barrier(queue->device, recording);
}

static void drop(struct gptoss_vulkan_queue *queue, struct gptoss_vulkan_program *program) {
    if (program->recording != VK_NULL_HANDLE)
        queue->device->run.FreeCommandBuffers(queue->device->handle, queue->pool, 1,
                                              &program->recording);
    gptoss_free(program->commands);
    *program = (struct gptoss_vulkan_program){0};
}

/* A recording of what is listed. */
static enum gptoss_status record(struct gptoss_vulkan_queue *queue, uint64_t hash,
                                 struct gptoss_vulkan_program *program,
                                 struct gptoss_error *error) {
    const struct gptoss_vulkan_functions *run = &queue->device->run;
    *program = (struct gptoss_vulkan_program){.hash = hash, .count = queue->count};
    program->commands = gptoss_allocate(queue->count, sizeof *program->commands);
    if (program->commands == NULL)
        return gptoss_error_memory(error, queue->count * sizeof *program->commands, "a recording");
    memcpy(program->commands, queue->commands, queue->count * sizeof *program->commands);
    const VkCommandBufferAllocateInfo info = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
        .commandPool = queue->pool,
        .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
        .commandBufferCount = 1,
    };
    const VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    VkResult result =
        run->AllocateCommandBuffers(queue->device->handle, &info, &program->recording);
    if (result != VK_SUCCESS)
        program->recording = VK_NULL_HANDLE;
    if (result == VK_SUCCESS)
        result = run->BeginCommandBuffer(program->recording, &begin);
    if (result == VK_SUCCESS) {
        record_commands(queue, program->recording);
        result = run->EndCommandBuffer(program->recording);
    }
    if (result == VK_SUCCESS)
        return GPTOSS_OK;
    drop(queue, program);
    return gptoss_vulkan_error(error, result, "recording commands");
}

void gptoss_vulkan_forget(struct gptoss_vulkan_queue *queue) {
    for (size_t i = 0; i < queue->num_programs; ++i)
        drop(queue, &queue->programs[i]);
    queue->num_programs = 0;
    drop(queue, &queue->once);
}

/* FNV-1a over 64-bit words; commands are whole numbers of them. */
static uint64_t hash_commands(const struct gptoss_vulkan_command *commands, size_t count) {
    _Static_assert(sizeof *commands % sizeof(uint64_t) == 0, "commands are hashed by words");
    const uint8_t *bytes = (const uint8_t *)commands;
    uint64_t hash = 0xCBF29CE484222325u, word;
    for (size_t i = 0; i < count * sizeof *commands; i += sizeof word) {
        memcpy(&word, bytes + i, sizeof word);
        hash = (hash ^ word) * 0x100000001B3u;
    }
    return hash;
}

static enum gptoss_status find_program(struct gptoss_vulkan_queue *queue, bool keep,
                                       struct gptoss_vulkan_program **program_out,
                                       struct gptoss_error *error) {
    *program_out = &queue->once;
    if (!keep) {
        drop(queue, &queue->once);
        return record(queue, 0, &queue->once, error);
    }
    uint64_t hash = hash_commands(queue->commands, queue->count);
    for (size_t i = 0; i < queue->num_programs; ++i) {
        struct gptoss_vulkan_program *program = &queue->programs[i];
        if (program->hash == hash && program->count == queue->count &&
            memcmp(program->commands, queue->commands, queue->count * sizeof *queue->commands) ==
                0) {
            *program_out = program;
            return GPTOSS_OK;
        }
    }
    if (queue->num_programs == GPTOSS_MAX_PROGRAMS) {
        GPTOSS_TRY(gptoss_vulkan_wait(queue, NULL, NULL, error));
        gptoss_vulkan_forget(queue);
    }
    *program_out = &queue->programs[queue->num_programs];
    GPTOSS_TRY(record(queue, hash, *program_out, error));
    ++queue->num_programs;
    return GPTOSS_OK;
}

/* ---- a lost device ---- */

/* Test hook only: no state that any result depends on. */
static atomic_uint_fast64_t num_counted;
static atomic_uint_fast64_t lose_at;

uint64_t gptoss_vulkan_lose_at(uint64_t n) {
    atomic_store(&lose_at, n);
    return atomic_exchange(&num_counted, 0);
}

/* Counts a submission or a wait against the hook: whether it finds the device lost. What runs would
 * not go on then, so it ends first. */
static bool loses_device(const struct gptoss_vulkan_device *device) {
    uint64_t count = atomic_fetch_add_explicit(&num_counted, 1, memory_order_relaxed) + 1;
    if (count != atomic_load_explicit(&lose_at, memory_order_relaxed))
        return false;
    device->run.DeviceWaitIdle(device->handle);
    return true;
}

enum gptoss_status gptoss_vulkan_check_lost(const struct gptoss_vulkan_queue *queue,
                                            struct gptoss_error *error) {
    if (!queue->is_lost)
        return GPTOSS_OK;
    gptoss_error_set(error, GPTOSS_ERROR_DEVICE,
                     "'%s' was lost while it computed: the GPU was reset or its driver failed, and "
                     "what this model had there is gone. Open the model again, or use "
                     "device='cpu'; a generator's tokens are still known, to be fed to a new one",
                     queue->device->name);
    gptoss_error_found(error, "%s", gptoss_vulkan_result_name(VK_ERROR_DEVICE_LOST));
    return GPTOSS_ERROR_DEVICE;
}

/* The error of a call that failed while doing `what`. */
static enum gptoss_status fail(struct gptoss_vulkan_queue *queue, VkResult result, const char *what,
                               struct gptoss_error *error) {
    queue->is_lost = result == VK_ERROR_DEVICE_LOST;
    return queue->is_lost ? gptoss_vulkan_check_lost(queue, error)
                          : gptoss_vulkan_error(error, result, what);
}

/* ---- running ---- */

/* Hands a recording over, or, with NULL, nothing but the fence behind all that runs. */
static enum gptoss_status submit(struct gptoss_vulkan_queue *queue,
                                 const struct gptoss_vulkan_program *program, VkFence fence,
                                 struct gptoss_error *error) {
    const VkSubmitInfo info = {
        .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
        .commandBufferCount = 1,
        .pCommandBuffers = program != NULL ? &program->recording : NULL,
    };
    const struct gptoss_vulkan_device *device = queue->device;
    VkResult result = VK_SUCCESS;
    if (fence != VK_NULL_HANDLE)
        result = device->run.ResetFences(device->handle, 1, &fence);
    if (result == VK_SUCCESS)
        result = loses_device(device)
                     ? VK_ERROR_DEVICE_LOST
                     : device->run.QueueSubmit(device->queue, program != NULL, &info, fence);
    if (result != VK_SUCCESS)
        return fail(queue, result, "submitting work to the GPU", error);
    queue->is_running = true;
    queue->has_fence = fence == queue->fence;
    return GPTOSS_OK;
}

enum gptoss_status gptoss_vulkan_start(struct gptoss_vulkan_queue *queue, bool keep,
                                       struct gptoss_error *error) {
    if (queue->count == 0)
        return gptoss_vulkan_check_lost(queue, error);
    enum gptoss_status status = gptoss_vulkan_wait(queue, NULL, NULL, error);
    struct gptoss_vulkan_program *program = NULL;
    if (status == GPTOSS_OK)
        status = find_program(queue, keep, &program, error);
    queue->count = 0;
    if (status != GPTOSS_OK)
        return status;
    queue->running = program;
    return submit(queue, program, queue->fence, error);
}

enum gptoss_status gptoss_vulkan_start_behind(struct gptoss_vulkan_queue *queue,
                                              struct gptoss_error *error) {
    if (queue->queries != VK_NULL_HANDLE) /* whose timestamps are those of one recording */
        return gptoss_vulkan_start(queue, true, error);
    enum gptoss_status status = gptoss_vulkan_check_lost(queue, error);
    if (status == GPTOSS_OK && queue->has_fence) /* which is to stand behind this, too */
        status = gptoss_vulkan_wait(queue, NULL, NULL, error);
    struct gptoss_vulkan_program *program = NULL;
    if (status == GPTOSS_OK)
        status = find_program(queue, true, &program, error);
    queue->count = 0;
    VkFence fence = VK_NULL_HANDLE;
    if (status == GPTOSS_OK && queue->num_behind < GPTOSS_MAX_BEHIND)
        fence = queue->behind[queue->num_behind++];
    return status != GPTOSS_OK ? status : submit(queue, program, fence, error);
}

static void add_timings(struct gptoss_vulkan_queue *queue) {
    const struct gptoss_vulkan_program *program = queue->running;
    if (queue->queries == VK_NULL_HANDLE || program->count > MAX_TIMED_COMMANDS)
        return;
    uint64_t *times = gptoss_allocate(program->count + 1, sizeof *times);
    if (times == NULL)
        return;
    VkResult result = queue->device->run.GetQueryPoolResults(
        queue->device->handle, queue->queries, 0, (uint32_t)program->count + 1,
        (program->count + 1) * sizeof *times, times, sizeof *times, VK_QUERY_RESULT_64_BIT);
    for (size_t i = 0; result == VK_SUCCESS && i < program->count; ++i)
        queue->nanoseconds[program->commands[i].timer] +=
            (uint64_t)((double)(times[i + 1] - times[i]) * queue->device->timestamp_nanoseconds);
    gptoss_free(times);
}

/* Looks for the fence again and again for as long as a token may take: sleeping costs some tens of
 * microseconds. Not where the processor is the device. */
static void spin(const struct gptoss_vulkan_device *device, VkFence fence) {
    uint64_t start = gptoss_clock_nanoseconds();
    while (!device->is_software &&
           device->run.GetFenceStatus(device->handle, fence) == VK_NOT_READY &&
           gptoss_clock_nanoseconds() - start < SPIN_NANOSECONDS)
        continue;
}

/* Waits for a fence; *stopped_out becomes true once stop says so. */
static enum gptoss_status wait_for(struct gptoss_vulkan_queue *queue, VkFence fence,
                                   bool (*stop)(void *user), void *user, bool *stopped_out,
                                   struct gptoss_error *error) {
    const struct gptoss_vulkan_device *device = queue->device;
    VkResult result;
    spin(device, fence);
    while ((result = device->run.WaitForFences(device->handle, 1, &fence, VK_TRUE,
                                               WAIT_NANOSECONDS)) == VK_TIMEOUT)
        *stopped_out = *stopped_out || (stop != NULL && stop(user));
    if (result == VK_SUCCESS && loses_device(device))
        result = VK_ERROR_DEVICE_LOST;
    if (result == VK_SUCCESS)
        return GPTOSS_OK;
    queue->is_running = false;
    return fail(queue, result, "waiting for the GPU", error);
}

enum gptoss_status gptoss_vulkan_wait_behind(struct gptoss_vulkan_queue *queue, uint32_t index,
                                             bool (*stop)(void *user), void *user,
                                             struct gptoss_error *error) {
    if (index >= queue->num_behind)
        return gptoss_vulkan_wait(queue, stop, user, error);
    bool stopped = false;
    GPTOSS_TRY(gptoss_vulkan_check_lost(queue, error));
    GPTOSS_TRY(wait_for(queue, queue->behind[index], stop, user, &stopped, error));
    return stopped ? GPTOSS_ERROR_INTERRUPTED : GPTOSS_OK;
}

enum gptoss_status gptoss_vulkan_wait(struct gptoss_vulkan_queue *queue, bool (*stop)(void *user),
                                      void *user, struct gptoss_error *error) {
    bool stopped = false;
    GPTOSS_TRY(gptoss_vulkan_check_lost(queue, error));
    if (queue->is_running && !queue->has_fence)
        GPTOSS_TRY(submit(queue, NULL, queue->fence, error));
    if (queue->is_running) {
        GPTOSS_TRY(wait_for(queue, queue->fence, stop, user, &stopped, error));
        queue->is_running = false;
        add_timings(queue);
    }
    queue->num_behind = 0;
    return stopped ? GPTOSS_ERROR_INTERRUPTED : GPTOSS_OK;
}
