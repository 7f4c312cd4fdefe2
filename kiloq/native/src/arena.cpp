// See arena.h.
#include "arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <new>
#include <stdexcept>

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

std::unique_ptr<Arena> Arena::mapped(const std::string& path, size_t offset, size_t bytes) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status = {};
    void* mapping = MAP_FAILED;
    if (file >= 0 && fstat(file, &status) == 0 && static_cast<size_t>(status.st_size) >= offset + bytes) {
        mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file, static_cast<off_t>(offset));
    }
    if (file >= 0) close(file);  // a mapping does not need it
    if (mapping == MAP_FAILED) throw std::runtime_error("the file of packed weights cannot be mapped");
    madvise(mapping, bytes, MADV_WILLNEED);  // begins to read it
    return std::unique_ptr<Arena>(new Arena(static_cast<uint8_t*>(mapping), bytes));
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
