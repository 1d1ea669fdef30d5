// Units of the weights in a file (docs/memory.md): experts or neurons, read when they are chosen or before, and kept
// for as long as there is room.
#ifndef RUNNEL_UNITS_H_
#define RUNNEL_UNITS_H_

#include "crc32c.h"
#include "plan.h"
#include "runnel_paging.h"
#include "storage.h"

namespace runnel {

constexpr int32_t kBounces = 16;  // reads at a time of units that do not fill whole pages

class Units {
 public:
  Units() = default;
  Units(const Units&) = delete;
  Units& operator=(const Units&) = delete;
  ~Units();

  // RN_NO_MEMORY where there is none for its books. Nothing is allocated after it.
  int Open(const Program& program, const rn_paging& paging, Storage* storage);
  // Whether a byte of the weights belongs to a unit.
  bool Holds(uint64_t offset) const;

  // Bytes of all units; of books and of memory for what is read in pieces; of the fewest slots that do.
  uint64_t all() const { return all_; }
  uint64_t fixed() const { return books_ + bounce_bytes_; }
  uint64_t least() const { return least_; }
  // Bytes of `room` that units have before `passing` bytes of weights that every step reads, so that a frame waits for
  // storage as little as can be, by what the plan says is missed. buffers: bytes that are needed where weights pass.
  uint64_t Share(uint64_t room, uint64_t passing, uint64_t buffers) const;
  // Shares `room` bytes (at least least()) among tables; returns what slots take of it. Waits for reads.
  uint64_t SetRoom(uint64_t room);

  // Brings units of tables into memory and says in which slots they are: Ask for each table, then Bring for each. Units
  // of tables that are asked for together have unlike sizes. Ids are those of the table, -1 for none, whose slot is -1.
  int Ask(int32_t table, const int32_t* ids, int32_t count);
  int Bring(int32_t table, const int32_t* ids, int32_t count, int32_t* slots);
  // A step begins: what was certain in the one before is so no longer.
  void NewStep() { ++step_; }
  // Begins to read units that will be chosen next, or may be: then if that pays. Never waits, never fails.
  void Guess(int32_t table, const int32_t* ids, int32_t count, bool certain);
  // Takes in what was read and begins what is to be read.
  void Pump();

  const uint8_t* Base(int32_t table) const { return pools_[tables_[table].pool].base; }
  int32_t Slots(int32_t table) const { return pools_[tables_[table].pool].slots; }

  // What went wrong: where in the weights, and an errno or one of Storage's results; 0 where bytes were altered.
  uint64_t failed_at() const { return failed_at_; }
  int failure() const { return failure_; }
  uint64_t stall_ns() const { return facts_.stall_ns; }
  void Count(rn_paging_facts* facts) const;

 private:
  struct Table {
    int32_t pool, first;   // unit 0 among all units
    float choices;         // as Unit::used, of CHOOSEs
    int32_t since;         // CHOOSEs since counts were halved
    int32_t guessed;       // units on their way, or there, that nobody asked for yet
    bool told;             // whether the plan guesses what is chosen
    int32_t last, chosen;  // the ids chosen last, in last_
    int32_t foreseen;      // ids that were not there when they were foreseen, in foreseen_
    int64_t foreseen_at;   // and when that was
    float right;           // the share of what was foreseen that was chosen
    float gap_ns;          // from foreseeing to choosing
    bool reading;          // and whether they are read since
    int32_t links;         // counts of what follows what, in links_; -1: none
    int32_t asked;         // ids, in asked_, and how many of them were not there
    int32_t missing;
    bool joined;  // whether it is chosen from together with the table before it
  };
  struct Pool {  // slots of one size
    uint64_t unit_bytes;
    int32_t first, slots, most, least;
    int32_t newest, oldest;
    bool scored, bounced;  // bounced: units do not fill whole pages, so they are read to the side and copied
    float read_ns;         // that a CHOOSE waits for a unit
    uint8_t* base;
    uint64_t turn;  // of its last CHOOSE, whose units stay
  };
  struct Slot {
    int32_t unit, pool;
    int32_t newer, older;
    int32_t begun, done;  // pieces
    int result;           // of the first piece that failed
    bool altered, guessed, queued;
    int32_t read;      // that brings its unit, where a run does
    uint64_t chosen;   // the number of the CHOOSE that it serves
    int64_t there_at;  // when its last piece came
    uint64_t wanted;   // the step in which it is certain to be chosen
  };
  struct Unit {
    int32_t slot, table;
    float used;    // how often, halved now and then
    float likely;  // to be chosen next, where that was foreseen
  };
  struct Read {
    int32_t slot, piece;
    bool guess;
    int32_t first, last;  // units of a run, of which those are taken that wait for it
  };

  double Missed(int32_t table, double held) const;
  double MissedBytes(int32_t pool, int32_t slots) const;
  void Allot(uint64_t room, Span<int32_t> slots) const;
  int32_t PoolOf(int64_t unit_bytes) const;
  void Layout(const Program& program);
  uint64_t Offset(int32_t unit) const;
  int32_t Pieces(const Slot& slot) const;
  bool Whole(const Slot& slot) const {
    return slot.unit >= 0 && slot.done == Pieces(slot) && !slot.result && !slot.altered;
  }

  void Link(int32_t slot, bool newest);
  void Unlink(int32_t slot);
  void Take(int32_t slot, int32_t unit);
  void Drop(int32_t slot);
  int32_t Victim(const Pool& pool, int32_t now, bool guess) const;
  float Worth(const Slot& slot, int32_t now) const;
  // Ids without those that are none, in asked_.
  const int32_t* Without(int32_t table, const int32_t* ids, int32_t count);
  void Note(int32_t table, const int32_t* ids, int32_t count);
  void Foresee(int32_t table);
  void Judge(int32_t table, const int32_t* ids, int32_t count);
  bool Pays(const Table& table) const;
  void GuessAll(int32_t now, int32_t table, const int32_t* ids, int32_t count, bool certain);
  void GuessOne(int32_t table, int32_t unit);

  int32_t FreeRead(const Pool& pool) const;
  bool BeginRun(const Table& table, const int32_t* ids, int32_t count);
  void DoneRun(int32_t read, int result);
  void Check(Slot& slot, const uint8_t* at, int32_t piece) const;
  bool Begin(int32_t slot, bool guess);
  void Done(int32_t read, int result);
  int Await(int32_t slot);
  int Wait(int32_t read, int64_t patience_ns);
  int WaitOne();
  void Reap();
  void Drain();

  const Program* program_ = nullptr;
  Storage* storage_ = nullptr;
  Crc32c sum_;
  uint64_t file_offset_ = 0;
  int64_t patience_ns_ = 0;
  int32_t policy_ = RN_UNITS_LRU;
  bool ahead_ = false;
  bool always_ = false;   // guesses are read whether or not that pays
  bool goes_on_ = false;  // where storage is slow
  uint64_t slow_ = 0;     // reads that took longer than the patience
  void* memory_ = nullptr;
  size_t books_ = 0;
  Span<Table> tables_;
  Span<Pool> pools_;
  Span<Slot> slots_;
  Span<Unit> units_;
  Span<int32_t> queue_, last_, foreseen_, asked_, allotted_;
  Span<uint16_t> links_;
  int32_t queued_ = 0, queue_first_ = 0;
  Read reads_[kUnitReads];
  uint8_t* bounce_ = nullptr;
  uint64_t bounce_bytes_ = 0, bounce_each_ = 0;
  uint64_t read_bytes_ = 0;  // that storage reads in the time that one more read takes
  uint64_t all_ = 0, least_ = 0, room_ = 0;
  uint64_t turn_ = 0;  // CHOOSEs so far
  uint64_t step_ = 1;
  uint64_t failed_at_ = 0;
  int failure_ = 0;
  rn_unit_facts facts_ = {};
};

}  // namespace runnel

#endif  // RUNNEL_UNITS_H_
