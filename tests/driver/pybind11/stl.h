// Lists are among the arguments that pybind11.h reads.
#pragma once
