// The layout of a key/value block, and attention of a few query rows over one chunk of keys.
//
// A block holds kBlockTokens tokens of one layer, one region for each key/value head:
//   fp32, bf16  keys [head size][tokens], values [tokens][padded head size]
//   int8        keys [head size / 4][tokens][4] and a scale for each token, values [tokens / 4][padded head size][4] and
//               a scale for each token; a code of 128 is zero
// Keys of neighbouring tokens lie side by side, so scores of a vector of tokens need no horizontal sums.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kiloq {

constexpr int kBlockTokens = 32;
constexpr int kChunkTokens = 512;  // keys whose softmax is taken at once; chunks are merged in order
constexpr int kMaxQueryRows = 32;  // of one task
constexpr int kMaxHeadSize = 1024;

enum class CacheFormat { fp32, bf16, int8 };

struct CacheLayout {
    CacheFormat format = CacheFormat::fp32;
    int heads = 0;      // key/value heads
    int head_size = 0;

    int padded_size() const { return (head_size + 15) / 16 * 16; }
    int quads() const { return (head_size + 3) / 4; }
    size_t element_bytes() const { return format == CacheFormat::fp32 ? 4 : format == CacheFormat::bf16 ? 2 : 1; }
    size_t key_bytes() const {
        const size_t sizes = format == CacheFormat::int8 ? static_cast<size_t>(quads()) * 4 : head_size;
        return sizes * kBlockTokens * element_bytes();
    }
    size_t value_bytes() const { return static_cast<size_t>(padded_size()) * kBlockTokens * element_bytes(); }
    size_t scale_bytes() const { return format == CacheFormat::int8 ? kBlockTokens * sizeof(float) : 0; }
    // Keys, key scales, values, value scales; whole cache lines.
    size_t region_bytes() const { return (key_bytes() + value_bytes() + 2 * scale_bytes() + 63) / 64 * 64; }
    size_t block_bytes() const { return region_bytes() * heads; }
    size_t key_scales_at() const { return key_bytes(); }
    size_t values_at() const { return key_bytes() + scale_bytes(); }
    size_t value_scales_at() const { return values_at() + value_bytes(); }
};

// Attention of `rows` queries over the keys [begin, end) of one chunk, for one key/value head.
struct AttendTask {
    const CacheLayout* layout = nullptr;
    const uint8_t* const* regions = nullptr;  // of the blocks that hold `begin`, `begin + kBlockTokens`, ...
    int begin = 0, end = 0;                   // begin is a multiple of kBlockTokens; end - begin <= kChunkTokens
    int rows = 0;                             // <= kMaxQueryRows
    const float* queries[kMaxQueryRows] = {};
    int first[kMaxQueryRows] = {};  // the keys that a row sees: [first, last)
    int last[kMaxQueryRows] = {};
    float scale = 1.0f;  // of the scores
    // Results of each row: the largest score (-inf when it sees no key of this chunk), the sum of
    // exp(score - largest), and the values weighted by these, [padded head size].
    float* peaks = nullptr;
    float* totals = nullptr;
    float* sums[kMaxQueryRows] = {};
};

struct AttentionKernels {
    // Puts one token's key and value, [head size] each, into a region.
    void (*store)(const CacheLayout& layout, uint8_t* region, int slot, const float* key, const float* value);
    void (*attend)(const AttendTask& task);
    // Adds a later chunk's result to an earlier one's: (peak, total, sums[n]) of the first becomes that of both.
    void (*merge)(float* peak, float* total, float* sums, float later_peak, float later_total, const float* later, int n);
};

}  // namespace kiloq
