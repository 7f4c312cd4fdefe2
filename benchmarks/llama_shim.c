// What the benchmarks need of llama.cpp, as a few plain functions that Python's ctypes can call.
//
// Compiled by build_llama_cpp.sh against the headers of the same source, so that no Python code has to repeat the
// layout of llama.cpp's structures, which changes between versions. Everything that is not named here stays at
// llama.cpp's own default: weights repacked for the CPU, flash attention and batches of 512 as it chooses.
#include <stdbool.h>
#include <stdio.h>

#include "ggml.h"
#include "llama.h"

static void keep_errors(enum ggml_log_level level, const char * text, void * unused) {
    (void) unused;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

// The features that this build of llama.cpp uses, as it says itself.
const char * shim_features(void) { return llama_print_system_info(); }

// NULL where the file cannot be loaded.
struct llama_model * shim_load(const char * path) {
    llama_log_set(keep_errors, NULL);
    llama_backend_init();
    return llama_model_load_from_file(path, llama_model_default_params());
}

// A context of `tokens` positions for each of `streams` sequences; `shared`: one pool of cells for all of them.
struct llama_context * shim_context(struct llama_model * model, int threads, int tokens, int streams, bool q8_cache,
                                    bool shared) {
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = (uint32_t) tokens * (shared ? 1 : (uint32_t) streams);
    params.n_seq_max = (uint32_t) streams;
    params.n_threads = params.n_threads_batch = threads;
    params.kv_unified = shared;
    params.no_perf = true;
    if (q8_cache) params.type_k = params.type_v = GGML_TYPE_Q8_0;
    return llama_init_from_model(model, params);
}

// Tokens of the vocabulary, which is the length of the logits.
int shim_vocabulary(const struct llama_model * model) { return llama_vocab_n_tokens(llama_model_get_vocab(model)); }

// One call for `count` tokens: token i goes to the end of its sequence; logits are computed where `wanted`.
// Returns 0, or llama.cpp's error.
int shim_decode(struct llama_context * context, const int * ids, const int * sequences, const signed char * wanted,
                int count) {
    llama_memory_t memory = llama_get_memory(context);
    struct llama_batch batch = llama_batch_init(count, 0, 1);
    batch.n_tokens = count;
    for (int i = 0; i < count; i++) {
        const bool again = i > 0 && sequences[i] == sequences[i - 1];
        batch.token[i] = ids[i];
        batch.pos[i] = again ? batch.pos[i - 1] + 1 : llama_memory_seq_pos_max(memory, sequences[i]) + 1;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = sequences[i];
        batch.logits[i] = wanted[i];
    }
    const int error = llama_decode(context, batch);
    llama_synchronize(context);
    llama_batch_free(batch);
    return error;
}

// The logits of row `at` of the last call, [vocabulary].
const float * shim_logits(struct llama_context * context, int at) { return llama_get_logits_ith(context, at); }

// Forgets the tokens of a sequence from position `from` on.
void shim_trim(struct llama_context * context, int sequence, int from) {
    llama_memory_seq_rm(llama_get_memory(context), sequence, from, -1);
}

// Gives the tokens of sequence `from` to sequence `to` as well (in a shared pool), then takes them from `from`.
void shim_move(struct llama_context * context, int from, int to) {
    llama_memory_seq_cp(llama_get_memory(context), from, to, -1, -1);
    llama_memory_seq_rm(llama_get_memory(context), from, -1, -1);
}
