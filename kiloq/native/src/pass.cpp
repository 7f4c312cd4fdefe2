// The stages of a pass but for attention; see pass.h.
#include "pass.h"

#include <algorithm>
#include <cmath>

#include "cpu.h"
#include "pack.h"

namespace kiloq {
namespace {

constexpr auto kAskEvery = std::chrono::milliseconds(10);  // asking costs the interpreter's lock
constexpr int kMostBlocks = 64;                             // of a matrix, taken at once by one member
constexpr int kMostTurns = 6;                               // of a member at a matrix, unless that is large
constexpr size_t kTurnBytes = 64 << 10;                     // at least of a turn: one or two microseconds

// Angle per position of every pair; Source: Qwen technical report, section 2.3 (NTK), as kiloq/model/rope.py.
std::vector<float> frequencies(const DecoderConfig& c, double alpha) {
    const double exponent = static_cast<double>(c.rotary_dim) / std::max(c.rotary_dim - 2, 1);
    const float base = static_cast<float>(c.rope_base * std::pow(alpha, exponent));
    std::vector<float> out(c.rotary_dim / 2);
    for (size_t i = 0; i < out.size(); ++i) {
        out[i] = 1.0f / std::pow(base, static_cast<float>(2 * i) / static_cast<float>(c.rotary_dim));
        if (!c.rope_divisors.empty()) out[i] /= c.rope_divisors[i];
    }
    return out;
}

// Blocks of a matrix that a member takes at once: several turns each, so that a member that is held up delays none, but
// few of small matrices, where claiming a piece costs more than waiting for its end; a multiple of two, the largest tile
// of the kernels.
int blocks_at_once(const Linear& linear, int members) {
    size_t bytes = 0;
    for (const Matrix& part : linear.parts) bytes += part.blocks * part.block_bytes();
    const int blocks = linear.blocks(), turns = std::clamp(static_cast<int>(bytes / members / kTurnBytes), 1, kMostTurns);
    return std::min(((blocks + members * turns - 1) / (members * turns) + 1) & ~1, kMostBlocks);
}

template <class T>
void grow(std::vector<T>& memory, size_t size) {
    if (memory.size() < size) memory.resize(size);
}

}  // namespace

Pass::Pass(const Weights& weights, const CacheLayout& layout, int members, Scratch& scratch, std::vector<PassRow> rows,
           const std::function<bool()>& interrupted)
    : w_(weights), c_(weights.config), layout_(layout), k_(kernels()), members_(members), s_(scratch), rows_(std::move(rows)),
      interrupted_(interrupted), asked_(std::chrono::steady_clock::now()) {
    for (size_t r = 0; r < rows_.size(); ++r) {
        const PassRow& part = rows_[r];
        StepRow& row = *part.row;
        const int first = static_cast<int>(wanted_.size());
        for (int i = 0; i < part.count; ++i) {
            const int index = part.begin + i, from_last = row.count - index;
            if (from_last <= row.wanted) {
                float* out = row.logits + static_cast<size_t>(row.wanted - from_last) * w_.head.width();
                wanted_.emplace_back(static_cast<int>(tokens_.size()), out);
            }
            tokens_.push_back({static_cast<int>(r), part.position() + i, row.ids[index]});
        }
        frequencies_.push_back(frequencies(c_, row.alpha));
        if (row.pooled != nullptr) pooling_.push_back(static_cast<int>(r));
        if (row.sampler != nullptr && part.begin + part.count == row.count) {
            drawing_.push_back({&row, first, static_cast<int>(wanted_.size())});
        }
    }
    for (const Layer& layer : w_.layers) {
        if (!plans_.contains(layer.window)) plans_.emplace(layer.window, plan(layer.window));
    }
    prepare_memory();
}

void Pass::prepare_memory() {
    const size_t tokens = tokens_.size();
    size_t depth = w_.head.depth(), qkv = 0, ffn = 0, results = 0;
    for (const Layer& layer : w_.layers) {
        for (const Linear* linear : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down}) {
            depth = std::max(depth, static_cast<size_t>(linear->depth()));
        }
        qkv = std::max(qkv, static_cast<size_t>(layer.qkv.width()));
        ffn = std::max(ffn, static_cast<size_t>(layer.gate_up.width()));
    }
    for (const auto& [window, plan] : plans_) {
        size_t of_plan = 0;
        for (size_t r = 0; r < rows_.size(); ++r) of_plan += static_cast<size_t>(rows_[r].count) * c_.heads * plan.pieces[r];
        results = std::max(results, of_plan);
    }
    grow(s_.x, tokens * width());
    grow(s_.qkv, tokens * qkv);
    grow(s_.mixed, tokens * c_.heads * c_.head_size);
    grow(s_.ffn, tokens * ffn);
    grow(s_.wide, tokens * depth);
    grow(s_.narrow, tokens * depth);
    grow(s_.groups, tokens * depth / kActivationGroup);
    grow(s_.outliers, tokens * most_outliers(static_cast<int>(depth)));
    grow(s_.outlier_counts, tokens);
    grow(s_.cosines, tokens * c_.rotary_dim / 2);
    grow(s_.sines, tokens * c_.rotary_dim / 2);
    grow(s_.peaks, results);
    grow(s_.totals, results);
    grow(s_.partial, results * layout_.padded_size());
    if (!drawing_.empty()) grow(s_.maxima, wanted_.size() * sampling_blocks());
}

// Stage 0 starts, kStages follow for every layer, the last four: pooling, the final norm, the head and the samplers.
int Pass::stages() const { return 1 + static_cast<int>(w_.layers.size()) * kStages + 4; }

int Pass::pieces(int stage) const {
    if (stage == 0) return tokens();
    if (stage == stages() - 4) return static_cast<int>(pooling_.size());
    if (stage == stages() - 3) return static_cast<int>(wanted_.size());
    if (stage == stages() - 2) return wanted_.empty() ? 0 : matrix_pieces(w_.head);
    if (stage == stages() - 1) return static_cast<int>(drawing_.size());
    const Layer& layer = w_.layers[(stage - 1) / kStages];
    switch (static_cast<Stage>((stage - 1) % kStages)) {
        case kQkv: return matrix_pieces(layer.qkv);
        case kPlace: return plans_.at(layer.window).places ? 0 : tokens() * c_.kv_heads;
        case kAttend: return static_cast<int>(plans_.at(layer.window).items.size());
        case kOutput: return matrix_pieces(layer.output);
        case kGateUp: return matrix_pieces(layer.gate_up);
        case kDown: return matrix_pieces(layer.down);
        default: return tokens();
    }
}

void Pass::run(int stage, int piece) {
    if (stage == 0) return begin(piece);
    if (stage == stages() - 4) return pool(rows_[pooling_[piece]]);
    if (stage == stages() - 3) return norm(s_.x.data() + wanted_[piece].first * width(), w_.final_norm, w_.head, piece);
    if (stage == stages() - 2) return head(piece);
    if (stage == stages() - 1) return draw(drawing_[piece]);
    const int index = (stage - 1) / kStages;
    const Layer& layer = w_.layers[index];
    const AttendPlan& plan = plans_.at(layer.window);
    const auto product = [&](const Linear& linear, std::vector<float>& y, size_t stride, bool accumulate) {
        multiply(linear, 0, tokens(), piece, {y.data(), stride, nullptr, accumulate});
    };
    switch (static_cast<Stage>((stage - 1) % kStages)) {
        case kNorm: return norm(s_.x.data() + piece * width(), layer.attention_norm, layer.qkv, piece);
        case kQkv: return product(layer.qkv, s_.qkv, layer.qkv.width(), false);
        case kPlace: return place(layer, index, piece / c_.kv_heads, piece % c_.kv_heads);
        case kAttend: return attend(plan, plan.items[piece], index);
        case kGather: return gather(plan, layer, piece);
        case kOutput: return product(layer.output, s_.x, width(), true);
        case kMlpNorm: return norm(s_.x.data() + piece * width(), layer.mlp_norm, layer.gate_up, piece);
        case kGateUp: return product(layer.gate_up, s_.ffn, layer.gate_up.width(), false);
        case kActivate: return activate(layer, piece);
        case kDown: return product(layer.down, s_.x, width(), true);
        case kStages: return;
    }
}

bool Pass::stopped() {
    if (!interrupted_) return false;
    const auto now = std::chrono::steady_clock::now();
    if (now - asked_ < kAskEvery) return false;
    asked_ = now;
    was_stopped_ = was_stopped_ || interrupted_();
    return was_stopped_;
}

void Pass::begin(int at) {
    const Token& token = tokens_[at];
    float* x = s_.x.data() + at * width();
    std::fill(x, x + width(), 0.0f);
    unpack_row(w_.embedding, token.id, x);
    const int pairs = c_.rotary_dim / 2;
    for (int i = 0; i < pairs; ++i) {
        const float angle = static_cast<float>(token.position) * frequencies_[token.row][i];
        s_.cosines[static_cast<size_t>(at) * pairs + i] = std::cos(angle) * c_.rope_magnitude;
        s_.sines[static_cast<size_t>(at) * pairs + i] = std::sin(angle) * c_.rope_magnitude;
    }
}

// Activations of one row in the forms that the matrices take; `values` has the linear map's columns.
void Pass::encode(const Linear& linear, int row, const float* values) {
    const int columns = linear.columns(), depth = linear.depth();
    float* wide = s_.wide.data() + static_cast<size_t>(row) * depth;
    if (linear.order.empty()) {
        if (wide != values) std::copy(values, values + columns, wide);
    } else {
        for (int i = 0; i < columns; ++i) wide[i] = values[linear.order[i]];
    }
    std::fill(wide + columns, wide + depth, 0.0f);
    bool codes = false, narrow = false;
    for (const Matrix& part : linear.parts) {
        codes |= part.quantised();
        narrow |= part.format == Format::bf16;
    }
    if (codes) {
        const size_t groups = depth / kActivationGroup, most = most_outliers(depth);
        k_.rows.quantise(wide, depth, linear.outlier,
                         {&s_.groups[row * groups], &s_.outliers[row * most], &s_.outlier_counts[row]});
    }
    if (narrow) k_.rows.narrow(wide, depth, s_.narrow.data() + static_cast<size_t>(row) * depth);
}

Activations Pass::encoded(const Linear& linear, int first, int rows) const {
    const size_t at = static_cast<size_t>(first) * linear.depth();
    return {.wide = s_.wide.data() + at, .narrow = s_.narrow.data() + at,
            .groups = s_.groups.data() + at / kActivationGroup,
            .outliers = s_.outliers.data() + static_cast<size_t>(first) * most_outliers(linear.depth()),
            .outlier_counts = s_.outlier_counts.data() + first, .depth = linear.depth(), .rows = rows};
}

// The head's pieces are whole blocks of the sampler, so that who makes logits can find their largest.
int Pass::blocks_at_once(const Linear& linear) const {
    constexpr int kAligned = kSamplingBlock / kBlockRows;
    const int at_once = kiloq::blocks_at_once(linear, members_);
    return &linear == &w_.head ? (at_once + kAligned - 1) / kAligned * kAligned : at_once;
}

int Pass::matrix_pieces(const Linear& linear) const {
    const int at_once = blocks_at_once(linear);
    return (linear.blocks() + at_once - 1) / at_once;
}

// One piece of a product: some blocks of outputs, for all rows of x. The target's bias is the map's own.
void Pass::multiply(const Linear& linear, int first_row, int rows, int piece, const Target& out) {
    const Activations x = encoded(linear, first_row, rows);
    const int at_once = blocks_at_once(linear);
    const int begin = piece * at_once, end = std::min(begin + at_once, linear.blocks());
    int first = 0;
    for (const Matrix& part : linear.parts) {
        const int from = std::max(begin, first), to = std::min(end, first + part.blocks);
        if (from < to) {
            const size_t start = static_cast<size_t>(first) * kBlockRows;
            const float* bias = linear.bias.empty() ? nullptr : linear.bias.data() + start;
            k_.matrix.multiply(part, from - first, to - first, x, {out.y + start, out.stride, bias, out.accumulate});
        }
        first += part.blocks;
    }
}

void Pass::norm(const float* x, const std::vector<float>& weight, const Linear& next, int row) {
    if (next.order.empty()) {  // encode then finds its values in their place
        float* wide = s_.wide.data() + static_cast<size_t>(row) * next.depth();
        k_.rows.normalise(x, weight.data(), c_.norm_eps, c_.hidden_size, wide);
        return encode(next, row, wide);
    }
    thread_local std::vector<float> normed;
    grow(normed, c_.hidden_size);
    k_.rows.normalise(x, weight.data(), c_.norm_eps, c_.hidden_size, normed.data());
    encode(next, row, normed.data());
}

void Pass::activate(const Layer& layer, int at) {
    float* gate = s_.ffn.data() + static_cast<size_t>(at) * layer.gate_up.width();
    k_.rows.swiglu(gate, gate + layer.gate_up.start(1), c_.ffn_size, gate);
    encode(layer.down, at, gate);
}

// Rows whose logits lie one behind the other in their caller's memory are one product.
void Pass::head(int piece) {
    const int rows = static_cast<int>(wanted_.size());
    const size_t stride = w_.head.width();
    for (int first = 0, next; first < rows; first = next) {
        next = first + 1;
        while (next < rows && wanted_[next].second == wanted_[next - 1].second + stride) ++next;
        multiply(w_.head, first, next - first, piece, {wanted_[first].second, stride, nullptr, false});
    }
    const int tokens = blocks_at_once(w_.head) * kBlockRows, end = std::min((piece + 1) * tokens, c_.vocab_size);
    for (const Drawing& drawing : drawing_) {
        for (int i = drawing.first; i < drawing.end; ++i) {
            find_maxima(wanted_[i].second, piece * tokens, end, maxima(i).data());
        }
    }
}

std::span<float> Pass::maxima(int wanted) const {
    return {s_.maxima.data() + wanted * sampling_blocks(), sampling_blocks()};
}

// In the tokens' order, so that the sum does not depend on how they were cut into passes.
void Pass::pool(const PassRow& part) {
    thread_local std::vector<float> normed;
    grow(normed, c_.hidden_size);
    for (int i = 0; i < part.count; ++i) {
        const float* x = s_.x.data() + static_cast<size_t>(part.first_token + i) * width();
        k_.rows.normalise(x, w_.final_norm.data(), c_.norm_eps, c_.hidden_size, normed.data());
        for (int j = 0; j < c_.hidden_size; ++j) part.row->pooled[j] += normed[j];
    }
}

void Pass::draw(const Drawing& drawing) {
    StepRow& row = *drawing.row;
    const int guesses = static_cast<int>(row.uniforms.size()) - 1, first = drawing.end - 1 - guesses;
    const size_t stride = w_.head.width();
    float* logits = row.logits + (row.wanted - 1 - guesses) * stride;
    try {
        for (int i = 0; i <= guesses; ++i) {
            std::span<const float> known;  // not of guesses at the end of the pass before
            if (first + i >= drawing.first) known = maxima(first + i);
            const int token = row.sampler->sample(logits + i * stride, c_.vocab_size, row.uniforms[i], row.banned, known);
            row.sampler->accept(token);
            row.drawn.push_back(token);
            if (i < guesses && token != row.ids[row.count - guesses + i]) break;
        }
    } catch (const LogitsError&) {  // this row's trouble alone; its caller says so
    } catch (...) {                 // no exception may leave a team's thread
        row.failure = std::current_exception();
    }
}

}  // namespace kiloq
