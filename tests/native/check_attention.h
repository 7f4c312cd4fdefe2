// store, attend and merge against a softmax in double over keys and values that are read back from the cache here, by
// the layout that kernels_attention.h describes; and the promise that a row's bits do not depend on the other rows of
// its task. Places that no token was stored in hold NaN, so that reading one shows.
#pragma once

#include <memory>

#include "arena.h"
#include "check.h"
#include "cpu.h"

namespace check {

using namespace kiloq;

constexpr int kTopCode = 127 * 128;  // int8 caches: queries and weights are rounded to this many steps of their peak

struct Cache {
    CacheLayout layout;
    Arena arena;
    std::vector<uint8_t*> regions;
    std::vector<float> keys, values;                  // as stored, [tokens][head size]
    std::vector<float> given_keys, given_values, value_scales;
    int tokens;
    char name[80];

    static size_t blocks(int tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

    Cache(CacheFormat format, int size, int count, bool extreme, Random& random)
        : layout{format, 1, size}, arena(blocks(count) * layout.region_bytes()), tokens(count) {
        const char* formats[] = {"fp32", "bf16", "int8"};
        std::snprintf(name, sizeof name,
            "attention %s, head size %d, %d tokens%s", formats[static_cast<int>(format)], size, count,
            extreme ? ", extreme" : "");
        for (size_t b = 0; b < blocks(count); ++b) {
            regions.push_back(arena.take(layout.region_bytes()));
            std::memset(regions.back(), 0xFF, layout.region_bytes());
        }
        for (auto* numbers : {&given_keys, &given_values}) {
            *numbers = random.values(static_cast<size_t>(count) * size);
            for (float& x : *numbers) x = extreme ? 1.0f : x;
        }
        if (count > 3) std::fill_n(given_keys.begin() + 3 * size, size, 0.0f);
        if (count > 3) std::fill_n(given_values.begin() + 3 * size, size, 0.0f);
        for (int t = 0; t < count; ++t) {
            kernels().attention.store(layout, region(t), t % kBlockTokens, &given_keys[t * size],
                &given_values[t * size]);
        }
        for (int t = 0; t < count; ++t) read_back(t);
    }

    uint8_t* region(int token) const { return regions[token / kBlockTokens]; }

    double number(const uint8_t* p, size_t index) const {
        if (layout.format == CacheFormat::fp32) return reinterpret_cast<const float*>(p)[index];
        return bf16_to_float(reinterpret_cast<const uint16_t*>(p)[index]);
    }

    void read_back(int token) {
        const uint8_t *at = region(token), *value_at = at + layout.values_at();
        const int slot = token % kBlockTokens, width = layout.padded_size();
        const bool codes = layout.format == CacheFormat::int8;
        const float key_scale = codes ? reinterpret_cast<const float*>(at + layout.key_scales_at())[slot] : 1.0f;
        const float value_scale = codes ? reinterpret_cast<const float*>(at + layout.value_scales_at())[slot] : 1.0f;
        value_scales.push_back(value_scale);
        for (int d = 0; d < layout.head_size; ++d) {
            if (codes) {
                keys.push_back(key_scale * (at[(d / 4 * kBlockTokens + slot) * 4 + d % 4] - 128));
                values.push_back(value_scale * (value_at[(slot / 4 * width + d) * 4 + slot % 4] - 128));
            } else {
                keys.push_back(static_cast<float>(number(at, d * kBlockTokens + slot)));
                values.push_back(static_cast<float>(number(value_at, slot * width + d)));
            }
        }
    }

    // Half a step of the format: nothing for fp32, half a unit in the last of 8 bits for bf16, half a code for int8
    // (and a little, because the peak's code is a rounded quotient).
    void check_store(const std::vector<float>& given, const std::vector<float>& stored, const char* what) const {
        const int size = layout.head_size;
        for (int t = 0; t < tokens; ++t) {
            float peak = 0.0f;
            for (int d = 0; d < size; ++d) peak = std::max(peak, std::fabs(given[t * size + d]));
            for (int d = 0; d < size; ++d) {
                const double x = given[t * size + d];
                const double step = layout.format == CacheFormat::int8 ? peak / 127.0 * 0.50002 : std::fabs(x) * 0x1p-8;
                const double tolerance = layout.format == CacheFormat::fp32 ? 0.0 : step;
                that(near(stored[t * size + d], x, tolerance),
                     "%s: %s %d of token %d is %.9g, not %.9g", name, what, d, t, stored[t * size + d], x);
            }
        }
    }
};

struct Queries {
    std::vector<float> numbers;
    std::vector<int> first, last;
    float scale;
};

// What one row got: from attend, over all chunks merged.
struct Result {
    float peak = -kInfinity, total = 0.0f;
    std::vector<float> sums;
};

// The rows [begin, begin + count) in one task. Tight: only the blocks that these rows see, as a decoder calls it.
std::vector<Result> attend(const Cache& cache, const Queries& q, int begin, int count, bool tight) {
    const int width = cache.layout.padded_size(), size = cache.layout.head_size;
    std::vector<Result> results(count);
    std::vector<float> peaks(count), totals(count), later(static_cast<size_t>(count) * width);
    int oldest = tight ? cache.tokens : 0, newest = tight ? 0 : cache.tokens;
    AttendTask task;
    task.layout = &cache.layout;
    task.rows = count;
    task.scale = q.scale;
    task.peaks = peaks.data();
    task.totals = totals.data();
    for (int r = 0; r < count; ++r) {
        results[r].sums.assign(width, 0.0f);
        task.queries[r] = &q.numbers[static_cast<size_t>(begin + r) * size];
        task.sums[r] = &later[static_cast<size_t>(r) * width];
        oldest = std::min(oldest, task.first[r] = q.first[begin + r]);
        newest = std::max(newest, task.last[r] = q.last[begin + r]);
    }
    for (int chunk = oldest / kChunkTokens; chunk * kChunkTokens < newest; ++chunk) {
        task.begin = std::max(chunk * kChunkTokens, oldest / kBlockTokens * kBlockTokens);
        task.end = std::min((chunk + 1) * kChunkTokens, newest);
        task.regions = cache.regions.data() + task.begin / kBlockTokens;
        std::fill(later.begin(), later.end(), kNan);
        kernels().attention.attend(task);
        for (int r = 0; r < count; ++r) {
            Result& to = results[r];
            kernels().attention.merge(&to.peak, &to.total, to.sums.data(), peaks[r], totals[r], task.sums[r], width);
        }
    }
    return results;
}

// One row in double, and how far floats may be from it.
class Exact {
public:
    Exact(const Cache& cache, const Queries& q, int row) : cache_(cache), first_(q.first[row]), last_(q.last[row]) {
        const int size = cache.layout.head_size;
        const float* query = &q.numbers[static_cast<size_t>(row) * size];
        const bool codes = cache.layout.format == CacheFormat::int8;
        double query_peak = 0.0;
        for (int d = 0; d < size; ++d) query_peak = std::max(query_peak, std::fabs(static_cast<double>(query[d])));
        for (int t = first_; t < last_; ++t) {
            double score = 0.0, magnitude = 0.0, keys = 0.0;
            for (int d = 0; d < size; ++d) {
                const double key = cache.keys[t * size + d];
                score += query[d] * key;
                magnitude += std::fabs(query[d] * key);
                keys += std::fabs(key);
            }
            // size products and sums, the scale; int8: also half a step for each number of the query.
            const double split = codes ? 0.501 * query_peak / kTopCode * keys : 0.0;
            scores_.push_back(score * q.scale);
            slack_.push_back(((size + 5) * kHalfUlp * magnitude + split) * q.scale);
            if (score * q.scale > peak) peak = score * q.scale, peak_slack = slack_.back();
            peak_slack = std::max(peak_slack, slack_.back());
        }
        weigh();
    }

    double peak = -INFINITY, peak_slack = 0.0, total = 0.0, total_slack = 0.0;

    // The mean of dimension d, and its tolerance.
    std::pair<double, double> mean(int d) const {
        const int size = cache_.layout.head_size;
        const bool codes = cache_.layout.format == CacheFormat::int8;
        double sum = 0.0, slack = 0.0;
        for (int t = first_; t < last_; ++t) {
            const double weight = weights_[t - first_], value = cache_.values[t * size + d];
            sum += weight * value;
            const double additions = (last_ - first_ + 8) * kHalfUlp;
            slack += weight * std::fabs(value) * (errors_[t - first_] + total_slack / total + additions);
            // int8: the weight times the value's scale is rounded to half a step of its block's largest.
            if (codes && cache_.value_scales[t] > 0.0f) {
                slack += 0.501 * block_peaks_[t / kBlockTokens] / kTopCode * std::fabs(value) / cache_.value_scales[t];
            }
        }
        return {sum / total, slack / total};
    }

private:
    void weigh() {
        block_peaks_.assign(cache_.regions.size(), 0.0);
        for (int t = first_; t < last_; ++t) {
            const double below = peak - scores_[t - first_];
            // A wrong score and a rounded difference (two, where chunks are merged) move the exponent; e^x itself.
            const double error = 2 * slack_[t - first_] + 2 * kHalfUlp * below + 1.3e-7 + 8 * kHalfUlp;
            const double weight = std::exp(-below);
            weights_.push_back(weight);
            errors_.push_back(error);
            total += weight;
            total_slack += weight * (error + (last_ - first_) * kHalfUlp) + 0x1p-124;  // e^-87 and less count as 0
            double& most = block_peaks_[t / kBlockTokens];
            most = std::max(most, weight * cache_.value_scales[t] * (1 + error));
        }
        total_slack += total * peak_slack;  // totals are relative to the peak
    }

    const Cache& cache_;
    int first_, last_;
    std::vector<double> scores_, slack_, weights_, errors_, block_peaks_;
};

bool same(const Result& a, const Result& b) {
    return same_bits(&a.peak, &b.peak, 1) && same_bits(&a.total, &b.total, 1) &&
           same_bits(a.sums.data(), b.sums.data(), a.sums.size());
}

void check_row(const Cache& cache, const Queries& q, int row, const Result& result) {
    if (q.first[row] == q.last[row]) {
        that(result.peak == -kInfinity && result.total == 0.0f,
             "%s: row %d sees nothing and has peak %g, total %g", cache.name, row, result.peak, result.total);
        return;
    }
    const Exact exact(cache, q, row);
    that(near(result.peak, exact.peak, exact.peak_slack),
         "%s: peak of row %d is %.9g, not %.9g +- %.2g", cache.name, row, result.peak, exact.peak, exact.peak_slack);
    that(near(result.total, exact.total, exact.total_slack),
         "%s: total of row %d is %.9g, not %.9g +- %.2g", cache.name, row, result.total, exact.total,
         exact.total_slack);
    for (int d = 0; d < cache.layout.padded_size(); ++d) {
        const auto [mean, slack] = d < cache.layout.head_size ? exact.mean(d) : std::pair(0.0, 0.0);
        that(near(result.sums[d] / result.total, mean, slack),
             "%s: row %d (keys %d..%d) dimension %d is %.9g, not %.9g +- %.2g", cache.name, row, q.first[row],
             q.last[row], d, result.sums[d] / result.total, mean, slack);
    }
}

void check_cache(CacheFormat format, int size, int tokens, bool extreme, Random& random) {
    const Cache cache(format, size, tokens, extreme, random);
    cache.check_store(cache.given_keys, cache.keys, "key");
    cache.check_store(cache.given_values, cache.values, "value");
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
    Queries q{random.values(static_cast<size_t>(kMaxQueryRows) * size), {}, {}, scale};
    for (float& x : q.numbers) x = extreme ? 1.0f : x;
    std::fill_n(q.numbers.begin() + 2 * size, size, 0.0f);
    for (int r = 0; r < kMaxQueryRows; ++r) {
        q.last.push_back(r == 5 ? 0 : r < 4 ? tokens : 1 + random.below(tokens));
        q.first.push_back(r % 3 == 0 ? 0 : random.below(q.last[r] + 1));
    }
    const std::vector<Result> all = attend(cache, q, 0, kMaxQueryRows, false);
    for (int r = 0; r < kMaxQueryRows; ++r) {
        check_row(cache, q, r, all[r]);
        that(same(attend(cache, q, r, 1, true)[0], all[r]),
             "%s: row %d alone (keys %d..%d) differs from the row among others", cache.name, r, q.first[r], q.last[r]);
    }
    for (int count = 2; count < kMaxQueryRows; ++count) {
        const int begin = random.below(kMaxQueryRows - count + 1);
        const std::vector<Result> some = attend(cache, q, begin, count, true);
        for (int r = 0; r < count; ++r) {
            that(same(some[r], all[begin + r]),
                 "%s: row %d among %d differs from the row among 32", cache.name, begin + r, count);
        }
    }
}

// A key or value that is not finite must show in every row that sees it.
void check_poison(CacheFormat format, Random& random) {
    constexpr int kSize = 20, kTokens = 40;
    for (const float bad : {kNan, kInfinity, -kInfinity}) {
        for (const bool in_key : {true, false}) {
            const Cache cache(format, kSize, kTokens, false, random);
            std::vector<float> key = random.values(kSize), value = random.values(kSize);
            (in_key ? key : value)[random.below(kSize)] = bad;
            kernels().attention.store(cache.layout, cache.region(35), 35 % kBlockTokens, key.data(), value.data());
            const Queries q{random.values(kSize), {0}, {kTokens}, 0.2f};
            const Result result = attend(cache, q, 0, 1, true)[0];
            const auto usable = [&](float x) { return std::isfinite(x / result.total); };
            const bool finite = std::all_of(result.sums.begin(), result.sums.end(), usable);
            // A score of -infinity is a legal way to hide a key.
            that(!finite || (in_key && std::isinf(bad)),
                 "%s: %g in a %s went unnoticed", cache.name, bad, in_key ? "key" : "value");
        }
    }
}

void check_attention() {
    Random random(3);
    for (const CacheFormat format : {CacheFormat::fp32, CacheFormat::bf16, CacheFormat::int8}) {
        for (const int size : {1, 4, 20, 64, 80, 128}) {
            for (const int tokens : {1, 33, 70}) check_cache(format, size, tokens, false, random);
        }
        check_cache(format, 4, 1100, false, random);  // three chunks
        check_cache(format, 20, 600, false, random);
        check_cache(format, 128, 70, true, random);
        check_poison(format, random);
    }
}

}  // namespace check
