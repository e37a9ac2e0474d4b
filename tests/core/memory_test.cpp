#include "ferry/core/memory.h"

#include <gtest/gtest.h>

#include <fstream>

#include "support/files.h"

namespace ferry {
namespace {

class Memory : public testing::Test {
 protected:
  void write(const std::string& file, const std::string& text) {
    const auto path = root_.path() / file;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }

  std::optional<std::size_t> available() { return available_memory(root_.path()); }

  test::TempDir root_;
};

TEST_F(Memory, IsUnknownWhereNobodySays) { EXPECT_EQ(available(), std::nullopt); }

TEST_F(Memory, IsWhatTheKernelCallsAvailable) {
  write("proc/meminfo", "MemTotal:  100 kB\nMemFree:  20 kB\nMemAvailable:   70 kB\nHuge: 1\n");
  EXPECT_EQ(available(), 70U * 1024);
}

TEST_F(Memory, EndsAtTheLimitOfTheControlGroup) {
  write("proc/meminfo", "MemAvailable:   70 kB\n");
  write("sys/fs/cgroup/memory.max", "50000\n");
  write("sys/fs/cgroup/memory.current", "20000\n");
  EXPECT_EQ(available(), 30000U);
  write("sys/fs/cgroup/memory.stat", "anon 12000\ninactive_file 8000\n");
  EXPECT_EQ(available(), 38000U) << "files that were read need not stay";
  write("sys/fs/cgroup/memory.current", "60000\n");
  EXPECT_EQ(available(), 0U);
  write("sys/fs/cgroup/memory.max", "max\n");
  EXPECT_EQ(available(), 70U * 1024);
}

TEST(AvailableMemory, OfThisMachineIsKnown) { EXPECT_GT(available_memory().value_or(0), 1U << 20); }

}  // namespace
}  // namespace ferry
