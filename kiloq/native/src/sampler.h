// From one row of logits to a token, with the rules and the order of kiloq/generate/sampling.py: bias, penalties, bans,
// temperature, top-k, top-p, min-p, then one uniform number picks by ascending token id. Given the same uniform number
// it picks the same token, except within about 1e-7 of a border between two tokens (weights of whole vocabularies are
// floats here, doubles there). A sampler knows its prompt's tokens and counts its answer's, so a token costs a few
// passes over the logits, never a sort of them nor a walk over the prompt.
#pragma once

#include <cstdint>
#include <span>
#include <stdexcept>
#include <unordered_map>
#include <utility>
#include <vector>

namespace kiloq {

// The logits have no finite maximum. Python sees a KiloqError.
struct LogitsError : std::runtime_error {
    LogitsError();
};

// The fields of kiloq.generate.params.SamplingParams that choose a token; their ranges are checked there.
struct SamplingRules {
    double temperature = 1.0;
    int64_t top_k = 0;
    double top_p = 1.0;
    double min_p = 0.0;
    double repetition_penalty = 1.0;
    double presence_penalty = 0.0;
    double frequency_penalty = 0.0;
    std::unordered_map<int64_t, double> logit_bias = {};
};

struct Logprobs {
    double chosen;
    std::vector<std::pair<int, double>> best;  // likeliest first, ties by id
};

// Copying one forks an answer. The buffers belong to the calling thread, not to the sampler: a hundred answers on one
// thread share 1.2 MB (at 151,936 logits) that stay in its cache.
class Sampler {
public:
    // Throws std::out_of_range for a negative token id.
    Sampler(SamplingRules rules, std::span<const int> prompt);

    // The token that `uniform` in [0, 1) selects; banned tokens are impossible. Records nothing. Logits are changed while
    // it works, and put back. maxima: those of find_maxima, where the caller has them. Throws LogitsError, and
    // std::out_of_range for ids in banned, prompt or answer that are not below vocab (bias ignores such ids).
    int sample(float* logits, int vocab, double uniform, std::span<const int> banned = {},
               std::span<const float> maxima = {}) const;

    // Counts a token of the answer.
    void accept(int token);

private:
    struct Seen {
        int token;
        int times;  // in the answer
    };

    template <class Visit>
    void visit_steered(int vocab, std::span<const int> banned, Visit visit) const;
    void steer(float* logits, int vocab, std::span<const int> banned) const;
    int choose(const float* logits, int vocab, double uniform) const;
    void see(int token, int times);

    SamplingRules rules_;
    std::vector<Seen> seen_;                // tokens of prompt (where they matter) and answer, each once
    std::unordered_map<int, int> places_;   // token -> place in seen_
    bool answered_ = false;
};

// The largest logit, NaN where any is, of each kSamplingBlock of logits begin to end - 1 into `maxima` (of all blocks);
// `begin` is the first of a block.
void find_maxima(const float* logits, int begin, int end, float* maxima);

// Natural-log probabilities of the raw logits: that of `token` and those of the `count` likeliest.
Logprobs log_probabilities(const float* logits, int vocab, int token, int count);

}  // namespace kiloq
