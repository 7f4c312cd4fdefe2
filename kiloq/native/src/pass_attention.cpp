// Attention of a pass: who attends to what, keys and values into the cache, results out of it. See pass.h.
#include <algorithm>
#include <cmath>

#include "pass.h"

namespace kiloq {
namespace {

int ceil_div(int a, int b) { return (a + b - 1) / b; }

}  // namespace

// Items for every row and key/value head. Where there are too few of them to keep the team busy, each takes one chunk
// only and `gather` merges; the arithmetic is the same either way. Small rows, as in decoding, are placed by the item
// that attends to them: a stage less, and their queries stay with one core.
AttendPlan Pass::plan(int window) const {
    AttendPlan out;
    const int pairs_at_once = group() >= kMaxQueryRows ? kMaxQueryRows : kMaxQueryRows / group() * group();
    int items = 0;
    for (const PassRow& row : rows_) items += ceil_div(row.count * group(), pairs_at_once) * c_.kv_heads;
    const bool split = items < 4 * members_;
    int result = 0;
    for (size_t r = 0; r < rows_.size(); ++r) {
        const PassRow& row = rows_[r];
        const auto chunks_of = [&](int first_pair, int pairs) {
            const int oldest = row.position() + first_pair / group(), newest = row.position() + (first_pair + pairs - 1) / group();
            const int first_key = window == 0 ? 0 : std::max(0, oldest - window + 1);
            return std::pair(first_key / kChunkTokens, newest / kChunkTokens + 1);
        };
        const int pairs = row.count * group();
        int pieces = 1;
        for (int first = 0; split && first < pairs; first += pairs_at_once) {
            const auto [from, to] = chunks_of(first, std::min(pairs_at_once, pairs - first));
            pieces = std::max(pieces, to - from);
        }
        for (int first = 0; first < pairs; first += pairs_at_once) {
            const int count = std::min(pairs_at_once, pairs - first);
            const auto [from, to] = chunks_of(first, count);
            for (int kv_head = 0; kv_head < c_.kv_heads; ++kv_head) {
                if (!split) {
                    out.items.push_back({static_cast<int>(r), kv_head, first, count, from, to - from, 0});
                    continue;
                }
                for (int piece = 0; piece < pieces; ++piece) {  // an item without chunks leaves an empty result
                    out.items.push_back({static_cast<int>(r), kv_head, first, count, from + piece, from + piece < to, piece});
                }
            }
        }
        out.first_result.push_back(result);
        out.pieces.push_back(pieces);
        out.places = out.places && pieces == 1 && pairs <= pairs_at_once;
        result += row.count * c_.heads * pieces;
    }
    return out;
}

size_t Pass::result(const AttendPlan& plan, int row, int kv_head, int pair) const {
    const int pairs = rows_[row].count * group();
    return plan.first_result[row] + (static_cast<size_t>(kv_head) * pairs + pair) * plan.pieces[row];
}

// One token's key, value and the queries of one key/value head: normed, rotated, scaled; key and value stored.
void Pass::place(const Layer& layer, int index, int at, int kv_head) {
    const Token& token = tokens_[at];
    const int size = c_.head_size, pairs = c_.rotary_dim / 2;
    const float *cosines = s_.cosines.data() + static_cast<size_t>(at) * pairs, *sines = s_.sines.data() + static_cast<size_t>(at) * pairs;
    float* row = s_.qkv.data() + static_cast<size_t>(at) * layer.qkv.width();
    const auto turn = [&](float* head, const std::vector<float>& norm) {
        if (!norm.empty()) k_.rows.normalise(head, norm.data(), c_.norm_eps, size, head);
        k_.rows.rotate(head, cosines, sines, pairs);
    };
    const bool scaled = c_.logn && token.position + 1 > c_.train_length;
    const float factor = scaled ? static_cast<float>(std::log(token.position + 1.0) / std::log(std::max(c_.train_length, 2))) : 1.0f;
    for (int h = kv_head * group(); h < (kv_head + 1) * group(); ++h) {
        float* query = row + h * size;
        turn(query, layer.query_norm);
        for (int i = 0; scaled && i < size; ++i) query[i] *= factor;
    }
    float* key = row + layer.qkv.start(1) + kv_head * size;
    turn(key, layer.key_norm);
    const float* value = row + layer.qkv.start(2) + kv_head * size;
    uint8_t* block = rows_[token.row].row->sequence->block(index, token.position);
    k_.attention.store(layout_, block + kv_head * layout_.region_bytes(), token.position % kBlockTokens, key, value);
}

void Pass::attend(const AttendPlan& plan, const AttendItem& item, int index) {
    const PassRow& row = rows_[item.row];
    const Layer& layer = w_.layers[index];
    for (int i = 0; plan.places && i < row.count; ++i) place(layer, index, row.first_token + i, item.kv_head);
    const size_t stride = plan.pieces[item.row], width = layout_.padded_size(), first = result(plan, item.row, item.kv_head, item.first_pair) + item.piece;
    AttendTask task;
    task.layout = &layout_;
    task.rows = item.pairs;
    task.scale = 1.0f / std::sqrt(static_cast<float>(c_.head_size));
    int newest = 0, oldest = INT32_MAX;
    for (int i = 0; i < item.pairs; ++i) {
        const int pair = item.first_pair + i, token = pair / group(), position = row.position() + token;
        const size_t at = static_cast<size_t>(row.first_token + token) * layer.qkv.width();
        task.queries[i] = s_.qkv.data() + at + (item.kv_head * group() + pair % group()) * c_.head_size;
        task.first[i] = layer.window == 0 ? 0 : std::max(0, position - layer.window + 1);
        task.last[i] = position + 1;
        oldest = std::min(oldest, task.first[i]);
        newest = std::max(newest, task.last[i]);
    }
    alignas(64) float later[kMaxQueryRows][kMaxHeadSize];
    float peaks[kMaxQueryRows], totals[kMaxQueryRows];
    const uint8_t* regions[kChunkTokens / kBlockTokens];
    task.regions = regions;
    task.peaks = peaks;
    task.totals = totals;
    for (int i = 0; i < item.pairs && item.chunks == 0; ++i) {
        s_.peaks[first + i * stride] = -std::numeric_limits<float>::infinity();
    }
    for (int chunk = item.first_chunk; chunk < item.first_chunk + item.chunks; ++chunk) {
        task.begin = std::max(chunk * kChunkTokens, oldest / kBlockTokens * kBlockTokens);
        task.end = std::min((chunk + 1) * kChunkTokens, newest);
        for (int block = 0; task.begin + block * kBlockTokens < task.end; ++block) {
            regions[block] = row.row->sequence->block(index, task.begin + block * kBlockTokens) + item.kv_head * layout_.region_bytes();
        }
        const bool earliest = chunk == item.first_chunk;
        for (int i = 0; i < item.pairs; ++i) task.sums[i] = earliest ? &s_.partial[(first + i * stride) * width] : later[i];
        k_.attention.attend(task);
        for (int i = 0; i < item.pairs; ++i) {
            const size_t place = first + i * stride;
            if (earliest) {
                s_.peaks[place] = peaks[i];
                s_.totals[place] = totals[i];
            } else {
                k_.attention.merge(&s_.peaks[place], &s_.totals[place], &s_.partial[place * width], peaks[i], totals[i], later[i], static_cast<int>(width));
            }
        }
    }
}

// The pieces of a token's results merged, divided by their weights, and encoded for the output matrix.
void Pass::gather(const AttendPlan& plan, const Layer& layer, int at) {
    const size_t width = layout_.padded_size();
    const Token& token = tokens_[at];
    float* mixed = s_.mixed.data() + static_cast<size_t>(at) * c_.heads * c_.head_size;
    for (int h = 0; h < c_.heads; ++h) {
        const int pair = (at - rows_[token.row].first_token) * group() + h % group();
        const size_t place = result(plan, token.row, h / group(), pair);
        float* sums = &s_.partial[place * width];
        for (int piece = 1; piece < plan.pieces[token.row]; ++piece) {
            const size_t other = place + piece;
            k_.attention.merge(&s_.peaks[place], &s_.totals[place], sums, s_.peaks[other], s_.totals[other],
                               &s_.partial[other * width], static_cast<int>(width));
        }
        const float share = 1.0f / s_.totals[place];
        for (int i = 0; i < c_.head_size; ++i) mixed[h * c_.head_size + i] = sums[i] * share;
    }
    encode(layer.output, at, mixed);
}

}  // namespace kiloq
