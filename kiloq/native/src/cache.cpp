// See cache.h.
#include "cache.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace kiloq {
namespace {

constexpr size_t kFirstSlab = 4u << 20, kLargestSlab = 256u << 20;  // ours: small for a chat, few for a server

}  // namespace

BlockPool::BlockPool(const CacheLayout& layout, size_t limit_bytes) : layout_(layout), limit_bytes_(limit_bytes) {}

void BlockPool::grow() {
    const size_t size = layout_.block_bytes(), used = places_.size() * size;
    const size_t wanted = std::clamp(used, std::max(kFirstSlab, size), std::max(kLargestSlab, size));
    const size_t count = std::min(wanted, limit_bytes_ > used ? limit_bytes_ - used : 0) / size;
    if (count == 0) {
        throw std::length_error("the cache is full: its limit is " + std::to_string(limit_bytes_ >> 20) + " MiB");
    }
    slabs_.push_back(std::make_unique<Arena>(count * size));
    uint8_t* begin = slabs_.back()->take(count * size);
    const int first = static_cast<int>(users_.size());
    users_.resize(first + count, 0);
    for (size_t i = 0; i < count; ++i) places_.push_back(begin + i * size);
    for (size_t i = count; i > 0; --i) free_.push_back(first + static_cast<int>(i) - 1);
}

int BlockPool::allocate() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) grow();
    const int block = free_.back();
    free_.pop_back();
    users_[block] = 1;
    return block;
}

void BlockPool::share(int block) {
    const std::lock_guard lock(mutex_);
    ++users_[block];
}

bool BlockPool::shared(int block) {
    const std::lock_guard lock(mutex_);
    return users_[block] > 1;
}

int BlockPool::used() {
    const std::lock_guard lock(mutex_);
    return static_cast<int>(users_.size() - free_.size());
}

int BlockPool::total() {
    const std::lock_guard lock(mutex_);
    return static_cast<int>(users_.size());
}

void BlockPool::release(int block) {
    const std::lock_guard lock(mutex_);
    if (--users_[block] == 0) free_.push_back(block);
}

Page::Page(std::shared_ptr<BlockPool> pool, std::vector<int> blocks) : pool_(std::move(pool)), blocks_(std::move(blocks)) {
    for (const int block : blocks_) {
        if (block >= 0) pool_->share(block);
    }
}

Page::~Page() {
    for (const int block : blocks_) {
        if (block >= 0) pool_->release(block);
    }
}

Sequence::Sequence(std::shared_ptr<BlockPool> pool, int layers) : pool_(std::move(pool)), tables_(layers) {}

Sequence::Sequence(const Sequence& other) : pool_(other.pool_), tables_(other.tables_), length_(other.length_) {
    for (const auto& table : tables_) {
        for (int block : table) {
            if (block >= 0) pool_->share(block);
        }
    }
}

Sequence::~Sequence() { clear(); }

void Sequence::clear() {
    for (auto& table : tables_) {
        for (int block : table) {
            if (block >= 0) pool_->release(block);
        }
        table.clear();
    }
    length_ = 0;
}

std::unique_ptr<Page> Sequence::page(int index) const {
    if (index < 0 || (static_cast<int64_t>(index) + 1) * kBlockTokens > length_) {
        throw std::out_of_range("these tokens are not cached");
    }
    std::vector<int> blocks;
    for (const auto& table : tables_) blocks.push_back(table[index]);
    return std::make_unique<Page>(pool_, std::move(blocks));
}

bool Sequence::resume(const std::vector<const Page*>& pages, const std::vector<int>& windows) {
    if (length_ != 0) throw std::invalid_argument("the sequence has tokens already");
    const int length = static_cast<int>(pages.size()) * kBlockTokens;
    for (int layer = 0; layer < layers(); ++layer) {
        const int first_seen = windows[layer] == 0 ? 0 : std::max(0, length - windows[layer] + 1);
        for (size_t i = first_seen / kBlockTokens; i < pages.size(); ++i) {
            if (pages[i]->pool() != pool_.get()) throw std::invalid_argument("this page is of another decoder");
            if (pages[i]->block(layer) < 0) return false;
        }
    }
    for (int layer = 0; layer < layers(); ++layer) {
        for (const Page* page : pages) {
            const int block = page->block(layer);
            if (block >= 0) pool_->share(block);
            tables_[layer].push_back(block);
        }
    }
    advance(length, windows);
    return true;
}

void Sequence::reserve(int count) {
    const size_t blocks = (static_cast<size_t>(length_) + count + kBlockTokens - 1) / kBlockTokens;
    for (auto& table : tables_) {
        if (length_ % kBlockTokens != 0) {
            int& last = table[length_ / kBlockTokens];
            if (pool_->shared(last)) {
                const int own = pool_->allocate();
                std::memcpy(pool_->at(own), pool_->at(last), pool_->layout().block_bytes());
                pool_->release(last);
                last = own;
            }
        }
        while (table.size() < blocks) table.push_back(pool_->allocate());
    }
}

void Sequence::trim() {
    const size_t blocks = (static_cast<size_t>(length_) + kBlockTokens - 1) / kBlockTokens;
    for (auto& table : tables_) {
        for (; table.size() > blocks; table.pop_back()) pool_->release(table.back());
    }
}

void Sequence::advance(int count, const std::vector<int>& windows) {
    length_ += count;
    trim();
    for (size_t layer = 0; layer < tables_.size(); ++layer) {
        if (windows[layer] == 0) continue;
        const int first_seen = std::max(0, length_ - windows[layer] + 1);  // by the next token
        auto& table = tables_[layer];
        for (int i = first_seen / kBlockTokens - 1; i >= 0 && table[i] >= 0; --i) {
            pool_->release(table[i]);
            table[i] = -1;
        }
    }
}

}  // namespace kiloq
