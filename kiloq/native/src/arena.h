// Memory for weights and caches: one reservation, 2 MiB aligned and in huge pages where the system grants them.
//
// Reading weights from 4 KiB pages costs up to a third of the memory's speed in address translation. Pages become
// real when they are first written, so a reservation that is larger than needed costs nothing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kiloq {

class Arena {
public:
    explicit Arena(size_t bytes);  // throws std::bad_alloc
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // The next `bytes`, zeros, aligned to a cache line. Throws std::bad_alloc beyond the reservation.
    uint8_t* take(size_t bytes);
    size_t used() const { return used_; }

private:
    uint8_t* mapping_ = nullptr;
    size_t mapped_ = 0;
    uint8_t* begin_ = nullptr;
    size_t size_ = 0, used_ = 0;
};

}  // namespace kiloq
