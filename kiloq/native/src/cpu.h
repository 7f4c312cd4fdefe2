// Which instruction set the engine runs on: the best that the processor has, or the one that KILOQ_CPU names.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace kiloq {

// Names of the paths that were compiled in and that this processor can run, best first; "portable" is always last.
std::vector<std::string> runnable_paths();

// The chosen table, found once. Throws std::invalid_argument when KILOQ_CPU names a path that cannot run here.
const Kernels& kernels();

// Its name.
const std::string& chosen_path();

}  // namespace kiloq
