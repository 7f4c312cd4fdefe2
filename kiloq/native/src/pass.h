// One pass: up to kPassTokens tokens of several sequences through all layers, by all members of the team together.
//
// Ten stages a layer, see Stage; "encode" brings activations into the form that the next matrices take. What a token
// gets is computed from its own activations and its sequence's cache in a fixed order, so it depends neither on its
// neighbours in the pass nor on who computes it.
#pragma once

#include <chrono>
#include <map>
#include <span>

#include "decoder.h"
#include "kernels.h"
#include "kernels_sampling.h"

namespace kiloq {

constexpr int kPassTokens = 512;  // bounds the activations' memory; long enough that weights are read rarely

// Memory of activations, kept between passes. Rows are tokens.
struct Scratch {
    std::vector<float> x, qkv, mixed, ffn;  // residual stream; heads; attention's output; gate and up
    std::vector<float> wide;  // encoded activations in the form that is needed
    std::vector<uint16_t> narrow;
    std::vector<ActivationGroup> groups;
    std::vector<Outlier> outliers;
    std::vector<int32_t> outlier_counts;
    std::vector<float> cosines, sines;
    std::vector<float> peaks, totals, partial;  // attention's results
    std::vector<float> maxima;                  // of the logits of each token that is wanted, for the sampler
};

// Some tokens of one row of the step.
struct PassRow {
    StepRow* row = nullptr;
    int begin = 0;  // tokens of the row that earlier passes have done
    int count = 0;
    int first_token = 0;  // where they lie in the pass

    int position() const { return row->sequence->length() + begin; }
};

// Query heads of neighbouring tokens of one row, over some chunks of the keys of their key/value head.
struct AttendItem {
    int row, kv_head;
    int first_pair, pairs;  // pair p: token p / n of the row in this pass, p % n of the n query heads of kv_head
    int first_chunk, chunks;
    int piece;  // which of its pairs' results it makes
};

struct AttendPlan {
    std::vector<AttendItem> items;
    std::vector<int> first_result, pieces;  // of each row's pairs: results lie side by side, piece by piece
    bool places = true;  // every row has one item a key/value head, which then does the placing as well
};

class Pass : public Job {
public:
    Pass(const Weights& weights, const CacheLayout& layout, int members, Scratch& scratch, std::vector<PassRow> rows,
         const std::function<bool()>& interrupted);

    int stages() const override;
    int pieces(int stage) const override;
    void run(int stage, int piece) override;
    bool stopped() override;
    bool was_stopped() const { return was_stopped_; }

private:
    struct Token {
        int row, position;
        int32_t id;
    };

    // Floats of a row of the residual stream: outputs come in whole blocks.
    size_t width() const { return (static_cast<size_t>(c_.hidden_size) + kBlockRows - 1) / kBlockRows * kBlockRows; }
    enum Stage { kNorm, kQkv, kPlace, kAttend, kGather, kOutput, kMlpNorm, kGateUp, kActivate, kDown, kStages };

    int tokens() const { return static_cast<int>(tokens_.size()); }
    void prepare_memory();
    void begin(int at);
    void encode(const Linear& linear, int row, const float* values);
    int matrix_pieces(const Linear& linear) const;
    void multiply(const Linear& linear, int first, int rows, int piece, const Target& out);
    Activations encoded(const Linear& linear, int first, int rows) const;
    void norm(const float* x, const std::vector<float>& weight, const Linear& next, int row);
    void activate(const Layer& layer, int at);
    void head(int piece);
    int blocks_at_once(const Linear& linear) const;
    struct Drawing {
        StepRow* row;
        int first, end;  // those of its logits that this pass computes, in wanted_
    };
    void draw(const Drawing& drawing);
    void pool(const PassRow& part);
    size_t sampling_blocks() const { return (static_cast<size_t>(c_.vocab_size) + kSamplingBlock - 1) / kSamplingBlock; }
    std::span<float> maxima(int wanted) const;  // of the logits at this place in wanted_

    // pass_attention.cpp
    AttendPlan plan(int window) const;
    void place(const Layer& layer, int index, int at, int kv_head);
    void attend(const AttendPlan& plan, const AttendItem& item, int index);
    void gather(const AttendPlan& plan, const Layer& layer, int at);
    int group() const { return c_.heads / c_.kv_heads; }
    size_t result(const AttendPlan& plan, int row, int kv_head, int pair) const;

    const Weights& w_;
    const DecoderConfig& c_;
    const CacheLayout& layout_;
    const Kernels& k_;
    const int members_;
    Scratch& s_;
    std::vector<PassRow> rows_;
    std::vector<Token> tokens_;
    std::vector<std::pair<int, float*>> wanted_;  // token, where its logits go
    std::vector<Drawing> drawing_;
    std::vector<int> pooling_;  // rows
    std::map<int, AttendPlan> plans_;             // by window
    std::vector<std::vector<float>> frequencies_;  // of each row
    const std::function<bool()>& interrupted_;
    bool was_stopped_ = false;
    std::chrono::steady_clock::time_point asked_;
};

}  // namespace kiloq
