// Choosing units, and beginning to read those that are likely to be chosen next.
#include "units.h"
#include "work_clock.h"

namespace runnel {
namespace {

constexpr int32_t kHalved = 64;   // CHOOSEs of a table after which counts are halved
constexpr float kSlowly = 0.02f;  // how much of a mean a new number makes
constexpr float kQuickly = 0.1f;

void Approach(float& mean, float value, float share) { mean += mean > 0 ? share * (value - mean) : value; }

}  // namespace

const int32_t* Units::Without(int32_t t, const int32_t* ids, int32_t count) {
  Table& table = tables_[t];
  int32_t* kept = asked_.data + table.last;
  table.asked = 0;
  for (int32_t i = 0; i < count; ++i) {
    if (ids[i] >= 0) kept[table.asked++] = ids[i];
  }
  return kept;
}

int Units::Ask(int32_t t, const int32_t* given, int32_t every) {
  Table& table = tables_[t];
  Pool& pool = pools_[table.pool];
  const int32_t *ids = Without(t, given, every), count = table.asked;
  pool.turn = ++turn_;
  Reap();
  for (int32_t i = 0; i < count; ++i) {
    const int32_t s = units_[table.first + ids[i]].slot;
    if (s < 0 || slots_[s].chosen == turn_) continue;
    const bool failed = slots_[s].result || slots_[s].altered;  // of an earlier CHOOSE: it is read again
    if ((policy_ == RN_UNITS_NONE || failed) && slots_[s].begun == slots_[s].done) {
      Drop(s);
      continue;
    }
    Slot& slot = slots_[s];
    slot.chosen = turn_;
    slot.wanted = 0;
    Unlink(s);
    Link(s, true);
    Whole(slot) ? ++facts_.found : ++facts_.late;
    if (slot.guessed) {
      slot.guessed = false;
      --table.guessed;
      ++facts_.guessed_used;
    }
  }
  facts_.chosen += static_cast<uint64_t>(count);
  Judge(t, ids, count);
  table.missing = 0;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t unit = table.first + ids[i];
    int32_t s = units_[unit].slot;
    if (s < 0) {
      while ((s = Victim(pool, t, false)) < 0) {
        if (const int code = WaitOne()) return code;
      }
      Take(s, unit);
      slots_[s].chosen = turn_;
      ++table.missing;
    }
    while (!pool.bounced && slots_[s].begun < Pieces(slots_[s]) && Begin(s, false)) {
    }
  }
  const bool small = pool.bounced && program_->tables[t].Pieces() == 1;
  for (int32_t i = 0; small && i < count; ++i) {
    const Slot& slot = slots_[units_[table.first + ids[i]].slot];
    while (!slot.begun && !BeginRun(table, ids + i, count - i)) {
      if (const int code = WaitOne()) return code;
    }
  }
  return RN_OK;
}

int Units::Bring(int32_t t, const int32_t* given, int32_t every, int32_t* found) {
  const Table& table = tables_[t];
  Pool& pool = pools_[table.pool];
  const int32_t *ids = asked_.data + table.last, count = table.asked;
  const uint64_t before = facts_.stall_ns;
  for (int32_t i = count; i-- > 0;) {  // the last first: one wait for all of them
    if (const int code = Await(units_[table.first + ids[i]].slot)) return code;
  }
  if (table.missing > 0) {
    const auto waited = static_cast<float>(facts_.stall_ns - before);
    Approach(pool.read_ns, waited / static_cast<float>(table.missing), kQuickly);
  }
  for (int32_t i = 0, next = 0; i < every; ++i) {
    found[i] = given[i] < 0 || next == count ? -1 : units_[table.first + ids[next++]].slot - pool.first;
  }
  Note(t, ids, count);
  return RN_OK;
}

// Compares what was foreseen with what is chosen.
void Units::Judge(int32_t t, const int32_t* ids, int32_t count) {
  Table& table = tables_[t];
  if (table.foreseen == 0) return;
  const int64_t gap = WorkClock() - table.foreseen_at;
  int64_t read = 0;
  Approach(table.gap_ns, static_cast<float>(gap), kQuickly);
  for (int32_t i = 0; i < table.foreseen; ++i) {
    bool right = false;
    for (int32_t k = 0; k < count; ++k) right |= ids[k] == foreseen_[table.last + i];
    Approach(table.right, right ? 1.0f : 0.0f, kSlowly);
    const int32_t s = units_[table.first + foreseen_[table.last + i]].slot;
    if (s < 0) continue;
    const int64_t until = slots_[s].done < Pieces(slots_[s]) ? gap : slots_[s].there_at - table.foreseen_at;
    if (until > read) read = until;
  }
  if (table.reading) {
    facts_.gap_ns += static_cast<uint64_t>(gap);
    facts_.read_ns += static_cast<uint64_t>(read < gap ? read : gap);
  }
  table.foreseen = 0;
}

// Whether right guesses save more time than wrong ones cost, whose reads are in the way of others.
bool Units::Pays(const Table& table) const {
  const float read = pools_[table.pool].read_ns, hidden = table.gap_ns < read ? table.gap_ns : read;
  return table.right * hidden >= (1.0f - table.right) * (read - hidden);
}

// Remembers what was chosen, and begins to read what is likely to follow.
void Units::Note(int32_t t, const int32_t* ids, int32_t count) {
  Table& table = tables_[t];
  if (table.guessed > 0) {  // wrong guesses may go from now on
    for (int64_t u = 0; u < program_->tables[t].units; ++u) {
      const int32_t s = units_[table.first + u].slot;
      if (s < 0 || !slots_[s].guessed || slots_[s].wanted == step_) continue;
      slots_[s].guessed = false;
      --table.guessed;
    }
  }
  if (!pools_[table.pool].scored) return;
  if (++table.since == kHalved) {
    table.since = 0;
    table.choices *= 0.5f;
    for (int64_t u = 0; u < program_->tables[t].units; ++u) units_[table.first + u].used *= 0.5f;
  }
  table.choices += 1.0f;
  for (int32_t i = 0; i < count; ++i) {
    units_[table.first + ids[i]].used += 1.0f;
    last_[table.last + i] = ids[i];
  }
  table.chosen = count;
  if (policy_ != RN_UNITS_PREDICT) return;
  const int32_t before = (t + tables_.size - 1) % tables_.size;
  const Table& from = tables_[before];
  if (from.links >= 0 && tables_.size > 1) {
    const int64_t width = program_->tables[t].units;
    for (int32_t i = 0; i < from.chosen; ++i) {
      uint16_t* row = links_.data + from.links + last_[from.last + i] * width;
      for (int32_t k = 0; k < count; ++k) {
        if (row[ids[k]] < UINT16_MAX) ++row[ids[k]];
      }
    }
  }
  Foresee(t);
}

// How likely the units of the table after `t` are to be chosen, by what followed the units chosen now.
void Units::Foresee(int32_t t) {
  const Table& table = tables_[t];
  const int32_t n = (t + 1) % tables_.size;
  const Table& next = tables_[n];
  if (table.links < 0 || next.told || next.joined || tables_.size < 2) return;
  const int64_t width = program_->tables[n].units;
  for (int64_t u = 0; u < width; ++u) {
    float sum = 0.0f, all = 1.0f;
    for (int32_t i = 0; i < table.chosen; ++i) {
      const int64_t id = last_[table.last + i];
      sum += links_[table.links + id * width + u];
      all += units_[table.first + id].used;
    }
    units_[next.first + u].likely = sum / all;
  }
  if (!ahead_) return;
  int32_t* best = foreseen_.data + next.last;
  for (int32_t k = 0; k < program_->tables[n].most; ++k) {
    best[k] = -1;
    for (int32_t u = 0; u < width; ++u) {
      bool taken = false;
      for (int32_t i = 0; i < k; ++i) taken |= best[i] == u;
      if (taken) continue;
      if (best[k] < 0 || units_[next.first + u].likely > units_[next.first + best[k]].likely) best[k] = u;
    }
  }
  GuessAll(t, n, best, program_->tables[n].most, false);
}

void Units::Guess(int32_t t, const int32_t* given, int32_t every, bool certain) {
  const Table& table = tables_[t];
  const int32_t *ids = Without(t, given, every), count = table.asked;
  if (policy_ == RN_UNITS_PREDICT && pools_[table.pool].scored) {
    for (int64_t u = 0; u < program_->tables[t].units; ++u) {
      Unit& unit = units_[table.first + u];
      unit.likely = (1.0f - table.right) * unit.used / (table.choices + 1.0f);
    }
    for (int32_t i = 0; i < count; ++i) units_[table.first + ids[i]].likely += table.right;
  }
  if (ahead_) GuessAll((t + tables_.size - 1) % tables_.size, t, ids, count, certain);
}

// Keeps what is there of units that table `now` foresees for table `t`, and begins to read the others.
void Units::GuessAll(int32_t now, int32_t t, const int32_t* ids, int32_t count, bool certain) {
  if (storage_->way() == RN_IO_PLAIN) return;
  Table& table = tables_[t];
  int32_t away = 0;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t s = units_[table.first + ids[i]].slot;
    if (s < 0) {
      foreseen_[table.last + away++] = ids[i];
    } else if (slots_[s].begun == slots_[s].done || slots_[s].guessed) {
      Unlink(s);  // it is wanted soon
      Link(s, true);
    }
  }
  const bool reads = certain || always_ || Pays(table);
  if (reads) {
    for (int32_t i = 0; i < away; ++i) GuessOne(now, table.first + foreseen_[table.last + i]);
    Pump();
  }
  for (int32_t i = 0; certain && i < count; ++i) {
    const int32_t s = units_[table.first + ids[i]].slot;
    if (s >= 0) slots_[s].wanted = step_;
  }
  table.foreseen = certain ? 0 : away;
  table.foreseen_at = WorkClock();
  table.reading = reads && away > 0;
}

void Units::GuessOne(int32_t now, int32_t unit) {
  Table& table = tables_[units_[unit].table];
  const int32_t s = Victim(pools_[table.pool], now, true);
  if (s < 0 || (slots_[s].queued && queued_ == queue_.size)) return;
  Take(s, unit);
  slots_[s].guessed = true;
  ++table.guessed;
  ++facts_.guessed;
  if (slots_[s].queued) return;
  slots_[s].queued = true;
  queue_[(queue_first_ + queued_++) % queue_.size] = s;
}

}  // namespace runnel
