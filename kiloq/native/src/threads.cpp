// See threads.h.
#include "threads.h"

#include <pthread.h>
#include <sched.h>

#include <memory>
#include <new>

namespace kiloq {
namespace {

constexpr int kSpins = 2000;  // 30 to 100 microseconds: about the gap between two tokens

inline void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

std::vector<int> allowed_cores() {
    cpu_set_t set;
    std::vector<int> cores;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return cores;
    for (int core = 0; core < CPU_SETSIZE; ++core) {
        if (CPU_ISSET(core, &set)) cores.push_back(core);
    }
    return cores;
}

void pin(int core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);  // a refusal only costs speed
}

std::mutex turns;
std::unique_ptr<Team> shared;

// In a forked process: the team's threads did not come along, and whoever held the turn is not there to end it.
void start_again() {
    new (&turns) std::mutex;
    static_cast<void>(shared.release());
}

}  // namespace

Team::Team(int size) : size_(size) {
    const std::vector<int> cores = allowed_cores();
    for (int member = 1; member < size; ++member) {
        const int core = static_cast<size_t>(size) <= cores.size() ? cores[cores.size() - member] : -1;
        workers_.emplace_back([this, core] { serve(core); });
    }
}

Team::~Team() {
    leaving_.store(true);
    claim_.store((first_stage_ + stages_ + 1) << 38);
    claim_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Team::wait_for_change(uint64_t word) {
    for (int i = 0; i < kSpins; ++i) {
        if (claim_.load(std::memory_order_acquire) != word) return;
        pause_briefly();
    }
    claim_.wait(word, std::memory_order_acquire);
}

// Runs one piece; false when there was none to claim.
bool Team::take_piece() {
    Claim seen{claim_.load(std::memory_order_acquire)};
    if (seen.next() >= seen.count()) return false;
    if (!claim_.compare_exchange_weak(seen.word, seen.word + 1, std::memory_order_acq_rel)) return true;
    // The stage cannot end before this piece is done, so job_ and count are those of the claim.
    const int stage = seen.stage_since(first_stage_);
    job_->run(stage, seen.next());
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == seen.count()) {
        done_.store(0, std::memory_order_relaxed);
        publish(stop_.load() ? stages_ : stage + 1);
    }
    return true;
}

// Offers the pieces of the job's first stage from `stage` on that has any.
void Team::publish(int stage) {
    int count = 0;
    while (stage < stages_ && (count = job_->pieces(stage)) == 0) ++stage;
    const uint64_t pieces = stage < stages_ ? count : 0;
    claim_.store((first_stage_ + stage) << 38 | pieces << 19, std::memory_order_release);
    claim_.notify_all();
}

void Team::serve(int core) {
    if (core >= 0) pin(core);
    while (!leaving_.load()) {
        if (!take_piece()) {
            const uint64_t word = claim_.load(std::memory_order_acquire);
            if (Claim{word}.next() >= Claim{word}.count() && !leaving_.load()) wait_for_change(word);
        }
    }
}

void Team::work_through(Job& job) {
    job_ = &job;
    stop_.store(false);
    first_stage_ += stages_ + 1;
    stages_ = job.stages();
    publish(0);
    for (;;) {
        if (!stop_.load() && job.stopped()) stop_.store(true);
        if (take_piece()) continue;
        const uint64_t word = claim_.load(std::memory_order_acquire);
        if (Claim{word}.stage_since(first_stage_) >= stages_) return;
        if (Claim{word}.next() >= Claim{word}.count()) wait_for_change(word);
    }
}

Team::Turn::Turn(int size) : lock_(turns) {
    static const int once = pthread_atfork(nullptr, nullptr, start_again);
    static_cast<void>(once);
    if (!shared || shared->size() != size) {
        shared.reset();
        shared = std::make_unique<Team>(size);
    }
    team_ = shared.get();
}

void share_out(Team& team, int pieces, const std::function<void(int)>& function) {
    struct OneStage : Job {
        OneStage(int pieces, const std::function<void(int)>& function) : count(pieces), body(function) {}
        int stages() const override { return 1; }
        int pieces(int) const override { return count; }
        void run(int, int piece) override { body(piece); }
        int count;
        const std::function<void(int)>& body;
    } job(pieces, function);
    team.work_through(job);
}

}  // namespace kiloq
