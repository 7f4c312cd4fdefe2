// The paged key/value cache: blocks of kBlockTokens tokens of one layer, shared between sequences until one writes.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "arena.h"
#include "kernels_attention.h"

namespace kiloq {

// Hands out blocks, counts their users. Invariant: a block is in the free list exactly when nobody uses it.
class BlockPool {
public:
    BlockPool(const CacheLayout& layout, size_t limit_bytes);

    int allocate();  // one user; throws std::length_error when the limit is reached
    void share(int block);
    void release(int block);
    bool shared(int block);
    uint8_t* at(int block) { return places_[block]; }

    const CacheLayout& layout() const { return layout_; }
    int used();   // blocks
    int total();  // used and free

private:
    void grow();

    std::mutex mutex_;  // sequences die in any thread, while a step of others runs
    CacheLayout layout_;
    size_t limit_bytes_;
    std::vector<std::unique_ptr<Arena>> slabs_;
    std::vector<uint8_t*> places_;
    std::vector<int> users_;
    std::vector<int> free_;
};

// The cached tokens of one sequence: a table of blocks for each layer. A block behind a layer's window is -1.
class Sequence {
public:
    Sequence(std::shared_ptr<BlockPool> pool, int layers);
    Sequence(const Sequence& other);
    ~Sequence();
    Sequence& operator=(const Sequence&) = delete;

    int length() const { return length_; }
    int layers() const { return static_cast<int>(tables_.size()); }
    void clear();

    // Makes room for `count` more tokens, and blocks that others share and this sequence will write its own. Throws
    // std::length_error when the pool is full. Until `advance` or `trim` the sequence must not be copied, because room
    // without tokens would be shared and written by both.
    void reserve(int count);
    // The tokens are written: the sequence is `count` longer, and blocks that no later token of a layer with a window
    // (0: none) sees are freed, and room that was not used.
    void advance(int count, const std::vector<int>& windows);
    // Frees room that holds no tokens.
    void trim();

    uint8_t* block(int layer, int position) const { return pool_->at(tables_[layer][position / kBlockTokens]); }

private:
    std::shared_ptr<BlockPool> pool_;
    std::vector<std::vector<int>> tables_;
    int length_ = 0;
};

}  // namespace kiloq
