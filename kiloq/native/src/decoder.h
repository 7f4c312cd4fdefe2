// The whole decoder: tokens of many sequences in, logits out, in one call.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#include "cache.h"
#include "matrix.h"
#include "sampler.h"
#include "threads.h"

namespace kiloq {

// One linear map; its outputs may come from several matrices, laid one behind the other in whole blocks of 16.
struct Linear {
    std::vector<Matrix> parts;
    std::vector<float> bias;  // of all blocks, padding included; empty: none
    std::vector<int> order;   // input column that stands at each place of the matrices; empty: as they come
    // Rounding to 8 bits costs a model as much as the largest of 32 activations is large, so those that are larger than
    // this many times the root mean square are multiplied as they are. They are few, and with them the default model's
    // perplexity, bf16 cache included, is 0.04 % above that of fp32 (benchmarks/results: kv-cache).
    float outlier = 3.5f;

    int columns() const { return parts.front().columns; }
    int depth() const { return parts.front().depth; }
    int blocks() const;
    int width() const { return blocks() * kBlockRows; }  // outputs, padding included
    int start(int part) const;                           // first output of a part
};

constexpr float kOutlierOfProducts = 7.0f;  // for `down`: products of two activations have long tails as a rule

struct Layer {
    std::vector<float> attention_norm, mlp_norm, query_norm, key_norm;  // the last two may be empty
    Linear qkv, output, gate_up, down;  // qkv: parts q, k, v; gate_up: parts gate, up
    int window = 0;                     // tokens that are visible, itself included; 0: all
};

struct DecoderConfig {
    int vocab_size = 0, hidden_size = 0, heads = 0, kv_heads = 0, head_size = 0, ffn_size = 0, rotary_dim = 0;
    float norm_eps = 1e-6f;
    double rope_base = 10000.0;
    std::vector<float> rope_divisors;  // of each frequency; empty: none
    float rope_magnitude = 1.0f;
    bool logn = false;
    int train_length = 0;  // L of LogN
};

struct Weights {
    std::shared_ptr<Arena> memory;  // that all matrices lie in
    DecoderConfig config;
    std::vector<Layer> layers;
    Matrix embedding;
    Linear head;
    std::vector<float> final_norm;

    void check() const;  // throws std::invalid_argument when a shape does not fit the others
};

// New tokens of one sequence in one call.
struct StepRow {
    Sequence* sequence = nullptr;
    const int32_t* ids = nullptr;
    int count = 0;
    double alpha = 1.0;        // dynamic-NTK stretch of the whole sequence
    float* logits = nullptr;   // [wanted][stride], of the last `wanted` tokens
    int wanted = 0;
    // Draws the token that follows, never one of `banned`. With more than one uniform number the row's last tokens are
    // guesses: drawing goes on behind each of them that is what was drawn before it.
    Sampler* sampler = nullptr;
    std::vector<double> uniforms;
    std::vector<int> banned;
    double* pooled = nullptr;    // [hidden size]: the final norm's outputs of all tokens are added to it
    std::vector<int> drawn;      // counted by the sampler; empty: no sampler, or the logits are not numbers
    std::exception_ptr failure;  // of the sampler; `step` throws it
};

// Tokens of the row that stay in its sequence: all but the guesses that were wrong.
int kept(const StepRow& row);

struct Interrupted : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Decoder {
public:
    Decoder(Weights weights, CacheFormat cache_format, size_t cache_limit_bytes, int threads);
    ~Decoder();

    std::unique_ptr<Sequence> open() const;
    // A sequence that begins with the tokens of pages of this decoder; null where `Sequence::resume` says no.
    std::unique_ptr<Sequence> open(const std::vector<const Page*>& pages) const;
    // Runs all rows. Either every sequence is longer by its tokens, or an exception left all of them as they were:
    // Interrupted when `interrupted`, asked while it runs, said so; std::length_error when the cache is full; what a
    // sampler threw but for LogitsError.
    void step(std::vector<StepRow>& rows, const std::function<bool()>& interrupted);

    int logits_stride() const { return weights_.head.width(); }
    const Weights& weights() const { return weights_; }
    BlockPool& pool() { return *pool_; }

private:
    struct Memory;

    void run(std::vector<StepRow>& rows, Team& team, const std::function<bool()>& interrupted);

    Weights weights_;
    std::shared_ptr<BlockPool> pool_;
    std::vector<int> windows_;
    int threads_;
    std::unique_ptr<Memory> memory_;
};

}  // namespace kiloq
