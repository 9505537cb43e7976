// The cheapest assignment by shortest augmenting paths (Jonker and Volgenant, 1987), exact under two-level costs.
//
// Pairs that are added component by component and compared lexicographically are an ordered group, which is all that
// the method asks of its numbers: the second level breaks ties of the first without epsilons. Ties are seen as long as
// sums of first components are exact in float64: multiples of 100 and float32 scores above 0.06 are, while tags stay
// within 10^5 of each other.
#pragma once

#include <cmath>

#include "group_keypoints/team.h"

namespace posekd {
namespace {

// A problem and its workspace. rows <= columns; every row is assigned.
struct Assignment {
  int rows, columns;
  Cost* cost;                               // [rows, columns], finite
  Cost *u, *v, *shortest;                   // [rows], [columns], [columns]
  int *column_of, *row_of, *before, *done;  // [rows], then [columns] each
};

// Moves the columns of the path that ends in `sink` on, so that `row` gets one.
POSEKD_TEAM void hand_on(const Assignment& a, int row, int sink) {
  for (int j = sink;;) {
    const int i = a.before[j], next = a.column_of[i];
    a.row_of[j] = i;
    a.column_of[i] = j;
    if (i == row) return;
    j = next;
  }
}

// Assigns `row` on top of the rows before it. Lane l owns the columns l, l + size, ...
template <class Team>
POSEKD_TEAM void augment(const Team& team, const Assignment& a, int row) {
  const Cost far{INFINITY, INFINITY};
  for (int j = team.lane(); j < a.columns; j += team.size()) a.shortest[j] = far, a.done[j] = 0;
  Cost reach{0.0, 0.0};
  int i = row, sink = -1;
  while (sink < 0) {
    const Cost u = a.u[i];
    Candidate best{far, a.columns};
    for (int j = team.lane(); j < a.columns; j += team.size()) {
      if (a.done[j]) continue;
      const Cost through = reach + a.cost[static_cast<int64_t>(i) * a.columns + j] - u - a.v[j];
      if (through < a.shortest[j]) a.shortest[j] = through, a.before[j] = i;
      best = cheaper(best, Candidate{a.shortest[j], j});
    }
    best = team.cheapest(best);
    reach = best.cost;
    if (best.column % team.size() == team.lane()) a.done[best.column] = 1;
    i = a.row_of[best.column];
    if (i < 0) sink = best.column;
  }
  for (int j = team.lane(); j < a.columns; j += team.size()) {
    if (!a.done[j] || j == sink) continue;
    const Cost slack = reach - a.shortest[j];
    a.v[j] = a.v[j] - slack;
    a.u[a.row_of[j]] = a.u[a.row_of[j]] + slack;
  }
  if (team.lane() == 0) a.u[row] = reach;
  team.sync();
  if (team.lane() == 0) hand_on(a, row, sink);
  team.sync();
}

// Fills column_of and row_of (-1 where nobody is).
template <class Team>
POSEKD_TEAM void solve(const Team& team, const Assignment& a) {
  for (int j = team.lane(); j < a.columns; j += team.size()) a.v[j] = {0.0, 0.0}, a.row_of[j] = -1;
  for (int i = team.lane(); i < a.rows; i += team.size()) a.u[i] = {0.0, 0.0}, a.column_of[i] = -1;
  team.sync();
  for (int row = 0; row < a.rows; ++row) augment(team, a, row);
}

}  // namespace
}  // namespace posekd
