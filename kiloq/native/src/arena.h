// Memory for weights and caches: one reservation, 2 MiB aligned and in huge pages where the system grants them.
//
// Reading weights from 4 KiB pages costs up to a third of the memory's speed in address translation. Pages become
// real when they are first written, so a reservation that is larger than needed costs nothing. An arena may also be a
// part of a file that an earlier one was written to: matrices made in the same order find their values there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace kiloq {

class Arena {
public:
    explicit Arena(size_t bytes);  // throws std::bad_alloc
    // Bytes of a file from `offset` on, a multiple of the page size; what is written stays here. Throws
    // std::runtime_error when the file cannot be mapped or is shorter.
    static std::unique_ptr<Arena> mapped(const std::string& path, size_t offset, size_t bytes);
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // The next `bytes`, zeros, aligned to a cache line. Throws std::bad_alloc beyond the reservation.
    uint8_t* take(size_t bytes);
    size_t used() const { return used_; }
    const uint8_t* begin() const { return begin_; }

private:
    Arena(uint8_t* mapping, size_t bytes) : mapping_(mapping), mapped_(bytes), begin_(mapping), size_(bytes) {}

    uint8_t* mapping_ = nullptr;
    size_t mapped_ = 0;
    uint8_t* begin_ = nullptr;
    size_t size_ = 0, used_ = 0;
};

}  // namespace kiloq
