// Work without the interpreter's lock that survives the interpreter's end.
//
// When Python exits it kills every other thread at the moment that it takes the lock again, and a C++ frame on its way
// back to Python turns that into an abort. So an exiting interpreter first lets those return that are out, and whoever
// comes after that sleeps until the process is gone.
#pragma once

#include <nanobind/nanobind.h>
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <thread>

namespace kiloq {

class Unlocked {
public:
    Unlocked() {
        const std::thread::id closer = closer_.load();
        if (closer == std::thread::id() || closer == std::this_thread::get_id()) {
            ++out_;
            released_.emplace();
            return;
        }
        const nanobind::gil_scoped_release released;
        for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
    ~Unlocked() {
        released_.reset();
        --out_;
    }
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;

    // Once, when the module is loaded.
    static void watch_exit() {
        pthread_atfork(nullptr, nullptr, [] { out_ = 0; });  // the threads that are out did not come along
        nanobind::module_::import_("atexit").attr("register")(nanobind::cpp_function(&close));
    }

private:
    // What this thread runs later at exit still works.
    static void close() {
        closer_ = std::this_thread::get_id();
        while (out_ > 0) {
            const nanobind::gil_scoped_release released;
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
    }

    inline static std::atomic<int> out_{0};
    inline static std::atomic<std::thread::id> closer_{};
    std::optional<nanobind::gil_scoped_release> released_;
};

}  // namespace kiloq
