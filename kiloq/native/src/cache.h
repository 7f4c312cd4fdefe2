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
    size_t limit_bytes() const { return limit_bytes_; }
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

// One stretch of kBlockTokens cached tokens, whole, kept for sequences that begin alike: a block of each layer, -1 where
// the layer's window has passed it.
class Page {
public:
    Page(std::shared_ptr<BlockPool> pool, std::vector<int> blocks);
    ~Page();
    Page(const Page&) = delete;
    Page& operator=(const Page&) = delete;

    int block(int layer) const { return blocks_[layer]; }
    const BlockPool* pool() const { return pool_.get(); }

private:
    std::shared_ptr<BlockPool> pool_;
    std::vector<int> blocks_;
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

    // The stretch of tokens [index * kBlockTokens, (index + 1) * kBlockTokens); all of them must be cached.
    std::unique_ptr<Page> page(int index) const;
    // Begins an empty sequence with the tokens of pages. False, and still empty: a layer's window needs a block that a
    // page does not have.
    bool resume(const std::vector<const Page*>& pages, const std::vector<int>& windows);

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
