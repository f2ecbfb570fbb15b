/* libFuzzer opens damaged model files; scripts/fuzz builds it, run beside this file runs it.
 *
 * The input becomes the file that FUZZ_FILE names, in a directory whose other file, if the format
 * has one, is good:
 *
 *   model.gguf           alone
 *   model.safetensors    beside config.json
 *   config.json          beside model.safetensors
 *
 * Whatever the bytes are, opening either fails with a sentence or gives a model that can be
 * verified and, if it has sane numbers, fed a token. The rest is the sanitizers' and the limits of
 * time and memory. FUZZ_SEEDS names the directory of the seeds, which holds the good files;
 * FUZZ_DIRECTORY one that each process makes its own in, for who runs it to remove. */
#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gptoss.h"

static char directory[256], model_path[300], fuzzed_path[300];

static void write_file(const char *path, const void *bytes, size_t num_bytes) {
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert(file >= 0);
    while (num_bytes > 0) {
        ssize_t written = write(file, bytes, num_bytes);
        assert(written > 0);
        bytes = (const char *)bytes + written;
        num_bytes -= (size_t)written;
    }
    close(file);
}

static const char *setting(const char *name) {
    const char *value = getenv(name);
    if (value == NULL) {
        fprintf(stderr, "the environment lacks %s\n", name);
        exit(1);
    }
    return value;
}

static void copy_good_file(const char *name) {
    static char bytes[1 << 20];
    char path[512];
    snprintf(path, sizeof path, "%s/good/%s", setting("FUZZ_SEEDS"), name);
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        fprintf(stderr, "FUZZ_SEEDS: no %s\n", path);
        exit(1);
    }
    size_t num_bytes = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    snprintf(path, sizeof path, "%s/%s", directory, name);
    write_file(path, bytes, num_bytes);
}

int LLVMFuzzerInitialize(int *num_arguments, char ***arguments);
int LLVMFuzzerInitialize(int *num_arguments, char ***arguments) {
    (void)num_arguments, (void)arguments;
    snprintf(directory, sizeof directory, "%s/XXXXXX", setting("FUZZ_DIRECTORY"));
    assert(mkdtemp(directory) != NULL);
    const char *name = setting("FUZZ_FILE");
    bool is_gguf = strcmp(name, "model.gguf") == 0;
    if (!is_gguf) {
        copy_good_file("model.safetensors");
        copy_good_file("config.json");
    }
    snprintf(fuzzed_path, sizeof fuzzed_path, "%s/%s", directory, name);
    snprintf(model_path, sizeof model_path, "%s", is_gguf ? fuzzed_path : directory);
    return 0;
}

static void feed_token(struct gptoss_model *model) {
    struct gptoss_generator_options options = {.max_context = 4, .kv_dtype = GPTOSS_DTYPE_F16};
    struct gptoss_generator *generator = NULL;
    struct gptoss_error error;
    int32_t token = 0;
    if (gptoss_generator_create(model, &options, &generator, &error) == GPTOSS_OK) {
        enum gptoss_status status =
            gptoss_generator_prefill(generator, &token, 1, NULL, NULL, NULL, &error);
        assert(status == GPTOSS_OK || error.message[0] != '\0');
    }
    gptoss_generator_release(generator);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t num_bytes);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t num_bytes) {
    struct gptoss_model_options options = {.num_threads = 1};
    struct gptoss_model *model = NULL;
    struct gptoss_error error;
    memset(&error, 0, sizeof error);
    write_file(fuzzed_path, bytes, num_bytes);
    if (gptoss_model_open(model_path, &options, &model, &error) != GPTOSS_OK) {
        assert(model == NULL && error.message[0] != '\0');
        return 0;
    }
    (void)gptoss_model_verify(model, NULL, NULL, &error);
    feed_token(model);
    gptoss_model_release(model);
    return 0;
}
