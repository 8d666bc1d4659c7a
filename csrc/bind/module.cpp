// The extension module: tells what it is and gathers what each area binds.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bind/areas.h"
#include "cpu/isa.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
    py::dict info;
    info["version"] = COMPDX_VERSION;
    info["compiler"] = COMPDX_COMPILER;
    info["flags"] = COMPDX_COMPILE_FLAGS;
    info["cuda_architectures"] = COMPDX_CUDA_ARCHITECTURES;
    info["isa"] = compdx::isa_name(compdx::best_isa());
    return info;
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (int i = compdx::kIsas - 1; i >= 0; --i) {
        const auto isa = static_cast<compdx::Isa>(i);
        if (compdx::isa_available(isa)) names.emplace_back(compdx::isa_name(isa));
    }
    return names;
}

}  // namespace

PYBIND11_MODULE(_core, module) {
    module.doc() = "Native core of compdx; use compdx.ops.";
    module.def("build_info", &build_info,
               "Version, compiler, flags, CUDA architectures (empty: built without CUDA), best instruction set here.");
    module.def("available_isas", &available_isas, "Instruction sets usable on this machine, best first.");
    compdx::bind::register_settings(module);
    compdx::bind::register_gradient(module);
    compdx::bind::register_slicing(module);
    compdx::bind::register_cpu(module);
    compdx::bind::register_cuda(module);
}
