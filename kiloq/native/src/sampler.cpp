// The sampler. Where few tokens can be drawn (top-k, small vocabularies) it computes in double, step by step as
// sampling.py does; else with one float weight a token (sampler_weights.h).
#include "sampler.h"

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <limits>
#include <string>

#include "cpu.h"
#include "sampler_row.h"
#include "sampler_weights.h"

namespace kiloq {

namespace {

constexpr double kLeastTemperature = 1e-5;  // as in sampling.py
constexpr int kFewTokens = 4096;            // vocabularies up to this are weighed in double

// The lowest id of the largest logit.
int find_peak(const Row& row, const std::vector<float>& maxima) {
    int best = 0;
    for (int b = 0; b < row.blocks(); ++b) {
        if (std::isnan(maxima[b])) throw LogitsError();
        if (maxima[b] > maxima[best]) best = b;
    }
    if (row.vocab == 0 || std::isinf(maxima[best])) throw LogitsError();
    std::array<int, kSamplingBlock> places;
    kernels().sampling.find(row.block(best), row.size(best), maxima[best], kInfinity, places.data());
    return best * kSamplingBlock + places[0];
}

// A number that at least k logits reach, and not many more: the k-th largest of the largest of groups.
float bound_of_best(const Row& row, int64_t k, Scratch& s) {
    constexpr int kSmallGroup = 32;
    s.order = s.maxima;
    if (2 * k > row.blocks()) {
        s.order.clear();
        for (int at = 0; at < row.vocab; at += kSmallGroup)
            s.order.push_back(kernels().sampling.largest(row.logits + at, std::min(kSmallGroup, row.vocab - at)));
    }
    if (2 * k > static_cast<int64_t>(s.order.size())) s.order.assign(row.logits, row.logits + row.vocab);
    if (k > static_cast<int64_t>(s.order.size())) return -kInfinity;
    std::nth_element(s.order.begin(), s.order.begin() + (k - 1), s.order.end(), std::greater<>());
    return s.order[k - 1];
}

// Calls visit(token) for every logit from `low` on, by ascending id.
template <class Visit>
void visit_from(const Row& row, float low, const Scratch& s, Visit visit) {
    std::array<int, kSamplingBlock> places;
    for (int b = 0; b < row.blocks(); ++b) {
        if (s.maxima[b] < low) continue;
        const int found = kernels().sampling.find(row.block(b), row.size(b), low, kInfinity, places.data());
        for (int i = 0; i < found; ++i) visit(b * kSamplingBlock + places[i]);
    }
}

// What may be drawn after temperature and top-k, by ascending id, into s.candidates; ties with the k-th are kept.
void gather(const Row& row, int64_t top_k, Scratch& s) {
    float low = -FLT_MAX;  // a logit of -inf is never drawn
    if (top_k > 0) {
        // Logits a little below the bound may tie with it once they are divided and rounded.
        const float bound = bound_of_best(row, top_k, s);
        low = std::max(low, bound - (std::fabs(bound) * 0x1p-21f + 1e-40f));
    }
    s.candidates.clear();
    visit_from(row, low, s, [&](int token) {
        if (const float scaled = row.scaled(token); scaled != -kInfinity) s.candidates.push_back({token, scaled});
    });
    if (top_k > 0 && top_k < static_cast<int64_t>(s.candidates.size())) {
        s.ranked = s.candidates;
        std::nth_element(s.ranked.begin(), s.ranked.begin() + (top_k - 1), s.ranked.end(), heavier);
        std::erase_if(s.candidates, [least = s.ranked[top_k - 1].weight](Candidate c) { return c.weight < least; });
    }
    for (Candidate& c : s.candidates) c.weight = std::exp(c.weight - row.top);
}

int draw_from_few(const SamplingRules& rules, double uniform, Scratch& s) {
    std::vector<Candidate>& kept = s.candidates;
    if (rules.top_p < 1.0) {
        s.ranked = kept;
        const Candidate last = last_of_nucleus(s.ranked, rules.top_p * total_of(kept));
        std::erase_if(kept, [last](const Candidate& c) { return heavier(last, c); });
    }
    if (rules.min_p > 0.0) {
        const double most = std::min_element(kept.begin(), kept.end(), heavier)->weight;
        std::erase_if(kept, [least = rules.min_p * most](const Candidate& c) { return c.weight < least; });
    }
    const double total = total_of(kept);
    double sum = 0.0;
    for (const Candidate& c : kept) {
        sum += c.weight / total;
        if (sum > uniform) return c.token;
    }
    return kept.back().token;
}

void check_id(int64_t token, int vocab) {
    if (token < 0 || token >= vocab)
        throw std::out_of_range("token id " + std::to_string(token) + " is outside the model's " +
                                std::to_string(vocab) + " tokens: ids start at 0");
}

// Logits as they were, once it goes out of scope.
struct PutBack {
    float* logits;
    const std::vector<std::pair<int, float>>& unsteered;

    ~PutBack() {
        for (const auto& [token, logit] : unsteered) logits[token] = logit;
    }
};

}  // namespace

void find_maxima(const float* logits, int begin, int end, float* maxima) {
    for (int at = begin; at < end; at += kSamplingBlock)
        maxima[at / kSamplingBlock] = kernels().sampling.largest(logits + at, std::min(kSamplingBlock, end - at));
}

LogitsError::LogitsError()
    : std::runtime_error(
          "the model's logits are not numbers (NaN or infinite): its weights are damaged or overflow in this "
          "precision; load it with --weights fp32 or check the file with `kiloq show`") {}

Sampler::Sampler(SamplingRules rules, std::span<const int> prompt) : rules_(std::move(rules)) {
    rules_.min_p = std::min(rules_.min_p, 1.0);  // above 1 nothing would be left to draw
    if (rules_.repetition_penalty != 1.0)
        for (const int token : prompt) see(token, 0);
}

void Sampler::accept(int token) {
    see(token, 1);
    answered_ = true;
}

void Sampler::see(int token, int times) {
    check_id(token, std::numeric_limits<int>::max());
    const auto [place, fresh] = places_.try_emplace(token, static_cast<int>(seen_.size()));
    if (fresh) seen_.push_back({token, 0});
    seen_[place->second].times += times;
}

// Calls visit(token) for every logit that the rules change; a token may come twice.
template <class Visit>
void Sampler::visit_steered(int vocab, std::span<const int> banned, Visit visit) const {
    for (const auto& [token, bias] : rules_.logit_bias)
        if (token >= 0 && token < vocab) visit(static_cast<int>(token));
    const bool penalises = rules_.presence_penalty != 0.0 || rules_.frequency_penalty != 0.0;
    for (const Seen& seen : seen_) {
        check_id(seen.token, vocab);
        if (rules_.repetition_penalty != 1.0 || (penalises && seen.times > 0)) visit(seen.token);
    }
    for (const int token : banned) {
        check_id(token, vocab);
        visit(token);
    }
}

void Sampler::steer(float* logits, int vocab, std::span<const int> banned) const {
    for (const auto& [token, bias] : rules_.logit_bias)
        if (token >= 0 && token < vocab) logits[token] += static_cast<float>(bias);
    const float repetition = static_cast<float>(rules_.repetition_penalty);
    const float presence = static_cast<float>(rules_.presence_penalty);
    const float frequency = static_cast<float>(rules_.frequency_penalty);
    for (const Seen& seen : seen_) {
        float& logit = logits[seen.token];
        if (rules_.repetition_penalty != 1.0) logit = logit < 0.0f ? logit * repetition : logit / repetition;
        if (seen.times > 0) logit -= presence + frequency * static_cast<float>(seen.times);
    }
    for (const int token : banned) logits[token] = -kInfinity;
}

int Sampler::sample(float* logits, int vocab, double uniform, std::span<const int> banned,
                    std::span<const float> maxima) const {
    Scratch& s = scratch();
    s.maxima.assign(maxima.begin(), maxima.end());
    if (maxima.empty()) {
        s.maxima.resize(Row{logits, vocab}.blocks());
        find_maxima(logits, 0, vocab, s.maxima.data());
    }
    s.unsteered.clear();
    visit_steered(vocab, banned, [&](int token) { s.unsteered.emplace_back(token, logits[token]); });
    const PutBack put_back{logits, s.unsteered};
    steer(logits, vocab, banned);
    // Infinity marks the blocks whose maxima are to be found again.
    for (const auto& [token, logit] : s.unsteered) s.maxima[token / kSamplingBlock] = kInfinity;
    for (const auto& [token, logit] : s.unsteered) {
        const int block = token / kSamplingBlock, begin = block * kSamplingBlock;
        if (s.maxima[block] == kInfinity) find_maxima(logits, begin, std::min(vocab, begin + kSamplingBlock), s.maxima.data());
    }
    return choose(logits, vocab, uniform);
}

// What `uniform` selects from steered logits, whose maxima lie in the scratch memory.
int Sampler::choose(const float* logits, int vocab, double uniform) const {
    Scratch& s = scratch();
    Row row{logits, vocab};
    const int peak = find_peak(row, s.maxima);
    row.temperature = static_cast<float>(std::max(kLeastTemperature, rules_.temperature));
    row.top = row.scaled(peak);
    // Logits too large to be divided by the temperature leave nothing but the likeliest.
    if (rules_.temperature == 0.0 || std::isinf(row.top)) return peak;
    const int64_t top_k = rules_.top_k < vocab ? rules_.top_k : 0;
    if (top_k > 0 || vocab <= kFewTokens) {
        gather(row, top_k, s);
        return draw_from_few(rules_, uniform, s);
    }
    Weights weights(row, s, rules_.top_p < 1.0 || rules_.min_p > 0.0);
    if (rules_.top_p < 1.0) weights.keep_nucleus(rules_.top_p);
    if (rules_.min_p > 0.0) weights.keep_from(rules_.min_p);
    return weights.draw(uniform);
}

Logprobs log_probabilities(const float* logits, int vocab, int token, int count) {
    check_id(token, vocab);
    Scratch& s = scratch();
    Row row{logits, vocab};
    s.maxima.resize(row.blocks());
    find_maxima(logits, 0, vocab, s.maxima.data());
    row.top = logits[find_peak(row, s.maxima)];
    const double shift = static_cast<double>(row.top) + std::log(Weights(row, s, false).total());
    Logprobs result{logits[token] - shift, {}};
    count = std::clamp(count, 0, vocab);
    if (count == 0) return result;
    s.candidates.clear();
    visit_from(row, bound_of_best(row, count, s), s, [&](int id) { s.candidates.push_back({id, logits[id] - shift}); });
    std::partial_sort(s.candidates.begin(), s.candidates.begin() + count, s.candidates.end(), heavier);
    for (int i = 0; i < count; ++i) result.best.emplace_back(s.candidates[i].token, s.candidates[i].weight);
    return result;
}

}  // namespace kiloq
