// Checks every kernel of the table that KILOQ_CPU names (or the best one) against naive code in double precision.
// Prints a line for each failure and exits 1, or one line that sums up and exits 0. `--paths` lists what can run here.
#include <chrono>
#include <cstdio>
#include <cstring>

#include "check_attention.h"
#include "check_matrix.h"
#include "check_rows.h"
#include "check_sampling.h"

int main(int argc, char** argv) {
    if (argc == 2 && std::strcmp(argv[1], "--paths") == 0) {
        for (const auto& path : kiloq::runnable_paths()) std::printf("%s\n", path.c_str());
        return 0;
    }
    const auto begin = std::chrono::steady_clock::now();
    check::check_matrices();
    check::check_rows();
    check::check_attention();
    check::check_sampling();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    std::printf("%s: %ld of %ld checks failed, %.1f s\n", kiloq::chosen_path().c_str(), check::failures, check::checks,
        seconds.count());
    return check::failures == 0 ? 0 : 1;
}
