// A cluster as a forecast needs it: hosts, links by how far they reach, memory and arithmetic of a
// rank. Read from JSON, whose members docs/simulate.md lists.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace ferry {

/// How a number came about. What a description leaves out is guessed.
enum class Origin { measured, described, guessed };

std::string_view origin_name(Origin origin);

/// Links of one level: between ranks of a host, or of several hosts. Rates are of a port.
struct ClusterLink {
  std::string name;
  int hosts = 1;          ///< that it joins; 0: all
  double latency_us = 0;  ///< from a put to its signal
  double gbytes_per_s = 0;
  double messages_per_s = 0;
  double peer_messages_per_s = 0;  ///< of one rank to one peer; 0: no limit of its own
  bool full_duplex = true;
  int ranks_per_port = 1;  ///< that share its rates
  Origin origin = Origin::described;
};

struct Cluster {
  std::string name;
  int hosts = 1;
  int ranks_per_host = 1;
  int threads = 1;                 ///< of a rank
  std::vector<ClusterLink> links;  ///< from the host's on
  double memory_gbytes_per_s = 0;  ///< that a rank reads and writes, all ranks of a host at work
  Origin memory_origin = Origin::described;
  double tflops = 0;            ///< that a rank's experts reach
  double sum_gbytes_per_s = 0;  ///< of results that a rank adds up; 0: as memory
  Origin kernel_origin = Origin::described;
  /// Rows are copied and added up while others still arrive, by hardware or threads of their own.
  bool copies_overlap = false;
  double start_us = 0;  ///< of dispatch, and of combine, before anything is sent
  Origin start_origin = Origin::guessed;

  /// Ranks that each level joins, as LinkLevels takes them.
  std::vector<int> spans() const;

  /// Throws ConfigError where so many ranks do not fill whole hosts, or are more than there are.
  void check_ranks(int ranks) const;
};

/// Reads a description. `bytes_multiply`: weights are int8 or int4, so of a report of `ferry doctor
/// --measure --json` that it names, the rate of byte products counts. Throws ConfigError, one line
/// that names the file and the member.
Cluster read_cluster(const std::filesystem::path& file, bool bytes_multiply);

/// The same from text; a report is looked for beside `file`.
Cluster parse_cluster(std::string_view text,
                      const std::filesystem::path& file,
                      bool bytes_multiply);

}  // namespace ferry
