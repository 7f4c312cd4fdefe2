// See decoder.h; the work is done in pass.cpp.
#include "decoder.h"

#include "pass.h"

namespace kiloq {

int Linear::blocks() const {
    int total = 0;
    for (const Matrix& part : parts) total += part.blocks;
    return total;
}

int Linear::start(int part) const {
    int total = 0;
    for (int i = 0; i < part; ++i) total += parts[i].blocks * kBlockRows;
    return total;
}

void Weights::check() const {
    const DecoderConfig& c = config;
    const auto require = [](bool holds) {
        if (!holds) throw std::invalid_argument("a weight's shape does not fit the network's configuration");
    };
    const auto is = [&](const Linear& linear, int columns, std::vector<int> rows) {
        require(linear.parts.size() == rows.size());
        for (size_t i = 0; i < rows.size(); ++i) require(linear.parts[i].rows == rows[i] && linear.parts[i].columns == columns);
    };
    const auto sized = [&](const std::vector<float>& values, int n, bool optional = false) {
        require(values.size() == static_cast<size_t>(n) || (optional && values.empty()));
    };
    require(c.heads > 0 && c.kv_heads > 0 && c.heads % c.kv_heads == 0 && c.head_size > 0 && c.head_size <= kMaxHeadSize);
    require(c.kv_heads <= Team::kMostPieces / kPassTokens);
    require(c.rotary_dim >= 0 && c.rotary_dim % 2 == 0 && c.rotary_dim <= c.head_size);
    sized(c.rope_divisors, c.rotary_dim / 2, true);
    const int q = c.heads * c.head_size, kv = c.kv_heads * c.head_size;
    for (const Layer& layer : layers) {
        is(layer.qkv, c.hidden_size, {q, kv, kv});
        is(layer.output, q, {c.hidden_size});
        is(layer.gate_up, c.hidden_size, {c.ffn_size, c.ffn_size});
        is(layer.down, c.ffn_size, {c.hidden_size});
        sized(layer.attention_norm, c.hidden_size);
        sized(layer.mlp_norm, c.hidden_size);
        sized(layer.query_norm, c.head_size, true);
        sized(layer.key_norm, c.head_size, true);
        require(layer.window >= 0);
    }
    require(embedding.rows == c.vocab_size && embedding.columns == c.hidden_size);
    is(head, c.hidden_size, {c.vocab_size});
    require(head.order.empty());
    sized(final_norm, c.hidden_size);
}

int kept(const StepRow& row) {
    if (row.drawn.empty()) return row.count;
    return row.count - static_cast<int>(row.uniforms.size() - row.drawn.size());
}

struct Decoder::Memory : Scratch {
    std::vector<float> logits;  // of rows that only draw
};

Decoder::Decoder(Weights weights, CacheFormat cache_format, size_t cache_limit_bytes, int threads)
    : weights_(std::move(weights)), threads_(threads), memory_(std::make_unique<Memory>()) {
    const CacheLayout layout{cache_format, weights_.config.kv_heads, weights_.config.head_size};
    pool_ = std::make_shared<BlockPool>(layout, cache_limit_bytes);
    for (const Layer& layer : weights_.layers) windows_.push_back(layer.window);
}

Decoder::~Decoder() = default;

std::unique_ptr<Sequence> Decoder::open() const {
    return std::make_unique<Sequence>(pool_, static_cast<int>(weights_.layers.size()));
}

std::unique_ptr<Sequence> Decoder::open(const std::vector<const Page*>& pages) const {
    auto sequence = open();
    if (!sequence->resume(pages, windows_)) sequence.reset();
    return sequence;
}

void Decoder::step(std::vector<StepRow>& rows, const std::function<bool()>& interrupted) {
    Team::Turn turn(threads_);
    try {
        for (const StepRow& row : rows) row.sequence->reserve(row.count);
        run(rows, turn.team(), interrupted);
    } catch (...) {
        for (const StepRow& row : rows) row.sequence->trim();
        throw;
    }
    for (const StepRow& row : rows) row.sequence->advance(kept(row), windows_);
}

void Decoder::run(std::vector<StepRow>& rows, Team& team, const std::function<bool()>& interrupted) {
    size_t drawing = 0;
    for (const StepRow& row : rows) {
        if (row.sampler != nullptr && row.wanted == 0) drawing += row.uniforms.size();
    }
    memory_->logits.resize(std::max(memory_->logits.size(), drawing * logits_stride()));
    float* logits = memory_->logits.data();
    for (StepRow& row : rows) {
        if (row.sampler == nullptr || row.wanted > 0) continue;
        row.logits = logits;
        row.wanted = static_cast<int>(row.uniforms.size());
        logits += row.wanted * logits_stride();
    }
    std::vector<int> done(rows.size(), 0);
    for (size_t next = 0; next < rows.size();) {
        std::vector<PassRow> part;
        int tokens = 0;
        while (next < rows.size() && tokens < kPassTokens) {
            const int count = std::min(rows[next].count - done[next], kPassTokens - tokens);
            part.push_back({&rows[next], done[next], count, tokens});
            tokens += count;
            done[next] += count;
            if (done[next] == rows[next].count) ++next;
        }
        Pass pass(weights_, pool_->layout(), threads_, *memory_, std::move(part), interrupted);
        team.work_through(pass);
        if (pass.was_stopped()) throw Interrupted("the step was interrupted");
    }
    for (const StepRow& row : rows) {
        if (row.failure) std::rethrow_exception(row.failure);
    }
}

}  // namespace kiloq
