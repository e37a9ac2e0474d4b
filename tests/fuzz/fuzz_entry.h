// What every fuzzed entry point has in common: input that will not do ends in an Error, and in
// nothing else.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>

#include "ferry/core/error.h"

/// libFuzzer's entry point; replay.cpp calls the same.
// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer looks for this name.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace ferry::test {

inline std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// The input up to the first zero byte, and what is behind it.
inline std::pair<std::string_view, std::string_view> halves_of(std::string_view input) {
  const std::size_t zero = std::min(input.find('\0'), input.size());
  return {input.substr(0, zero), input.substr(std::min(zero + 1, input.size()))};
}

/// Runs fn. An Error that speaks of the input is fine, a broken contract is a defect; anything else
/// that is thrown ends the program by itself.
template <class Fn>
void run_on_input(const Fn& fn) {
  try {
    fn();
  } catch (const BrokenContract& defect) {
    std::fprintf(stderr, "broken contract: %s\n", defect.what());
    std::abort();
  } catch (const Error& error) {
    if (std::string_view(error.what()).find('\n') != std::string_view::npos) {
      std::fprintf(stderr, "an error of more than one line: %s\n", error.what());
      std::abort();
    }
  }
}

}  // namespace ferry::test
