// The team of threads beyond what a test could reach by running models: stage numbers that come round, jobs of odd forms.
// Prints one line for each failure.
#include <atomic>
#include <cstdio>
#include <vector>

#include "threads.h"

namespace {

int failures = 0;

void check(bool holds, const char* what) {
    if (holds) return;
    std::printf("%s\n", what);
    ++failures;
}

// Every `every`-th stage has pieces, the others none; counts what is run and whether a stage begins before another ends.
struct Sparse : kiloq::Job {
    Sparse(int stages, int every, int count) : stage_count(stages), every(every), count(count) {}
    int stages() const override { return stage_count; }
    int pieces(int stage) const override { return stage % every == 0 ? count : 0; }
    void run(int stage, int piece) override {
        if (stage % every != 0 || piece < 0 || piece >= count) ++wrong;
        if (stage / every != done.fetch_add(1) / count) ++wrong;
    }
    int stage_count, every, count;
    std::atomic<int> done{0}, wrong{0};
};

struct Stopping : kiloq::Job {
    int stages() const override { return 1000; }
    int pieces(int) const override { return 7; }
    void run(int, int) override { ++done; }
    bool stopped() override { return done > 70; }
    std::atomic<int> done{0};
};

void work(kiloq::Team& team, Sparse&& job) {
    team.work_through(job);
    const int filled = (job.stage_count + job.every - 1) / job.every;
    check(job.wrong == 0, "a piece was run that is not there, or before the stage ahead of it had ended");
    check(job.done == filled * job.count, "pieces were left out or run twice");
}

}  // namespace

int main() {
    for (int size : {1, 2, 3, 7}) {
        kiloq::Team team(size);
        for (int i = 0; i < 300; ++i) work(team, Sparse(1 + i % 5, 1 + i % 2, 1 + i % 23));
        work(team, Sparse(0, 1, 1));
        work(team, Sparse(5, 1, 0 + 1000));
        Stopping stopping;
        team.work_through(stopping);
        check(stopping.done >= 71 && stopping.done < 7000, "a job that asked to be stopped went on");
        work(team, Sparse(9, 2, 4));
    }
    kiloq::Team team(2);
    for (int i = 0; i < 3; ++i) {  // 2^26 stages, and a few at each side of them
        work(team, Sparse((1 << 26) - 40, 1 << 22, 5));
        for (int j = 0; j < 30; ++j) work(team, Sparse(3, 1, 5));
    }
    std::printf("%d failures\n", failures);
    return failures != 0;
}
