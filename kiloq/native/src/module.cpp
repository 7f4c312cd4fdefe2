// The Python module _native: what it offers is gathered here, each part binds itself.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "cpu.h"
#include "unlocked.h"

namespace nb = nanobind;

void bind_decoder(nb::module_& module);
void bind_sampler(nb::module_& module);

NB_MODULE(_native, module) {
    module.doc() = "kiloq's CPU engine; kiloq.native is its Python face.";
    module.def("runnable_paths", &kiloq::runnable_paths, "Instruction sets that this processor can run, best first.");
    module.def("chosen_path", &kiloq::chosen_path, "The instruction set in use; KILOQ_CPU forces one.");
    nb::set_leak_warnings(false);  // models that threads still hold when the process ends are no news to the user
    kiloq::Unlocked::watch_exit();
    bind_decoder(module);
    bind_sampler(module);
}
