// A team of threads that work through the stages of a job together.
//
// A job is a row of stages, a stage is a number of pieces; pieces are claimed one by one, and a stage ends when all of
// its pieces are done. Nobody waits for a member that has nothing in hand: where another process takes a core away,
// the members that still run do all the work, instead of standing at a barrier until the last has come.
//
// The caller is the team's first member, the others are pinned to one allowed core each. Members wait by spinning for a
// moment, then asleep. One team serves the whole process: models take turns, because two spinning teams on the same
// cores would only hinder each other.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace kiloq {

// What a team works on. `run` is called by many members at once, for different pieces.
class Job {
public:
    virtual ~Job() = default;
    virtual int stages() const = 0;
    virtual int pieces(int stage) const = 0;  // at most Team::kMostPieces; 0: the stage is passed over
    virtual void run(int stage, int piece) = 0;
    virtual bool stopped() { return false; }  // asked by the caller's thread between pieces; true ends the job early
};

class Team {
public:
    static constexpr int kMostPieces = (1 << 19) - 1;

    class Turn;  // holds the process's team

    explicit Team(int size);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return size_; }

    // Works through the job; returns when its last stage is done, or when it was stopped and no piece is in hand.
    void work_through(Job& job);

private:
    // What there is to claim, in one word, so that a claim cannot mix two stages: the last 26 bits of the stage's number
    // since the team began (it comes round after some 200,000 tokens), its pieces, and the next of them.
    struct Claim {
        uint64_t word;
        int stage_since(uint64_t first) const { return static_cast<int>(((word >> 38) - first) & ((1u << 26) - 1)); }
        int count() const { return static_cast<int>(word >> 19 & kMostPieces); }
        int next() const { return static_cast<int>(word & kMostPieces); }
    };

    void serve(int core);
    bool take_piece();
    void publish(int stage);
    void wait_for_change(uint64_t word);

    const int size_;
    alignas(64) std::atomic<uint64_t> claim_{0};
    alignas(64) std::atomic<int> done_{0};  // pieces of the present stage
    std::atomic<bool> stop_{false}, leaving_{false};
    Job* job_ = nullptr;       // these change only while nothing can be claimed
    uint64_t first_stage_ = 0;
    int stages_ = 0;
    std::vector<std::thread> workers_;
};

// Holds the process's team for as long as it lives; others wait. A forked process gets its own team.
class Team::Turn {
public:
    explicit Turn(int size);
    Team& team() { return *team_; }

private:
    std::lock_guard<std::mutex> lock_;
    Team* team_;
};

// A job of one stage from a function of the piece.
void share_out(Team& team, int pieces, const std::function<void(int)>& function);

}  // namespace kiloq
