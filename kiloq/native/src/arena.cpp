// See arena.h.
#include "arena.h"

#include <sys/mman.h>

#include <new>

namespace kiloq {

constexpr size_t kHugePage = 2u << 20;

Arena::Arena(size_t bytes) : mapped_(bytes + kHugePage), size_(bytes) {
    void* mapping = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    mapping_ = static_cast<uint8_t*>(mapping);
    const size_t into = reinterpret_cast<uintptr_t>(mapping_) % kHugePage;
    begin_ = mapping_ + (into ? kHugePage - into : 0);
    madvise(begin_, size_, MADV_HUGEPAGE);  // a refusal only costs speed
}

Arena::~Arena() { munmap(mapping_, mapped_); }

uint8_t* Arena::take(size_t bytes) {
    const size_t rounded = (bytes + 63) / 64 * 64;
    if (rounded > size_ - used_) throw std::bad_alloc();
    uint8_t* place = begin_ + used_;
    used_ += rounded;
    return place;
}

}  // namespace kiloq
