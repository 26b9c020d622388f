// Package ledger keeps the rules of one volume image that is being written. A
// repository adapter asks it what may be stored, and tells it what was stored.
//
// A chunk is open until it is put. Its segment is open until Next closes it; the
// segments are closed in order, one at a time. The adapter stores what Next returns
// and answers with Sealed.
//
//	chunks    0 .. 127   128 .. 255   256 .. 383   384 .. 511
//	segment   sealed     sealed       open         open
//	                                  ^ frontier: no chunk before it may be put
//
// The ledger itself has three states:
//
//	from     event            to
//	Writing  Fail             Failed
//	Writing  Finish (commit)  Ended
//	Writing  End (give up)    Ended
//	Failed   End              Ended
//
// Only a ledger that is Writing takes anything. Every error of a method comes from a
// caller that breaks a rule of repository.VolumeWriter, or from a state that is not
// Writing.
//
// The package is pure. It knows a stored chunk by the adapter's own name for it.
package ledger

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/blockmover/blockmover/internal/repository"
)

// ErrOver is the error of whatever comes after the end or a failure.
var ErrOver = errors.New("the image is committed, closed or has failed")

// state is what a ledger is in; see the package documentation.
type state int

const (
	writing state = iota
	failed
	ended
)

// none is a chunk, where there is none.
const none = -1

// Ledger records one image. ID is the adapter's name for a stored chunk or page; its
// zero value names nothing. It is safe for concurrent use. Its lock is held for no
// longer than a method runs, and no method waits for anything else.
type Ledger[ID comparable] struct {
	layout   repository.Layout
	resumed  int64 // segments
	interval int64

	mu    sync.Mutex
	state state
	open  map[int64]*Segment[ID]
	// frontier is the first segment that Next has not closed.
	frontier int64
	// sealing says that the segment before the frontier is closed and not sealed.
	sealing bool
	// border must be put as a whole; see Options.ParentSize. It is none when it was.
	border int64
	stats  repository.WriteStats
	// unrecorded is how many bytes were put since the last Recorded.
	unrecorded int64
}

// Segment is what was put of one segment.
type Segment[ID comparable] struct {
	Index int64
	// Chunks are those that were put whole, by their place in the segment, and
	// Pages those that were put in pages. A page without a name is inherited. Chunks
	// is nil where nothing was put.
	Chunks []ID
	Pages  map[int64][]ID
	whole  int
}

// Whole reports whether all chunks of the segment were put whole.
func (s Segment[ID]) Whole() bool { return s.Chunks != nil && s.whole == len(s.Chunks) }

// Options say how an image begins.
type Options struct {
	// ParentSize is the size of the parent, in bytes; it is 0 where there is none. Where
	// the image has another size, the chunk in which the smaller of both ends must be
	// put whole, unless the end of the volume is the end of a chunk. The parent has
	// padding there, or the image has.
	ParentSize int64
	// Resumed is how many segments an earlier run has sealed.
	Resumed int64
	// Interval is WriterOptions.CheckpointInterval.
	Interval int64
}

// New returns the ledger of an image that nothing was put in yet.
func New[ID comparable](layout repository.Layout, o Options) *Ledger[ID] {
	l := &Ledger[ID]{
		layout: layout, resumed: o.Resumed, interval: o.Interval,
		open: map[int64]*Segment[ID]{}, frontier: o.Resumed, border: none,
	}
	if end := min(layout.Size(), o.ParentSize); o.ParentSize != 0 && o.ParentSize != layout.Size() && end%layout.ChunkSize() != 0 {
		l.border = end / layout.ChunkSize()
	}
	if l.border < l.Resumed() {
		l.border = none
	}
	return l
}

// Resumed is the first chunk that may be put.
func (l *Ledger[ID]) Resumed() int64 {
	return l.layout.EndOf(l.resumed) / l.layout.ChunkSize()
}

// MustBeWhole reports whether a chunk must be put whole; see Options.ParentSize.
func (l *Ledger[ID]) MustBeWhole(chunk int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return chunk == l.border
}

// Check fails where one of count chunks from the given one on may not be put. The
// adapter asks before it stores anything.
func (l *Ledger[ID]) Check(first, count int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for chunk := first; chunk < first+count; chunk++ {
		if err := l.check(chunk); err != nil {
			return err
		}
	}
	return nil
}

func (l *Ledger[ID]) check(chunk int64) error {
	index, within := l.layout.SegmentAt(chunk)
	switch {
	case l.state != writing:
		return ErrOver
	case index < l.frontier:
		return fmt.Errorf("its segment %d is finished already", index)
	}
	var nothing ID
	if s := l.open[index]; s != nil && (s.Chunks[within] != nothing || s.Pages[within] != nil) {
		return errors.New("it was put before")
	}
	return nil
}

// Stored is a chunk that the adapter has stored: whole, or in pages.
type Stored[ID comparable] struct {
	Whole ID
	// Pages are all pages of the chunk, with the zero value of ID for those that are
	// inherited. They are nil if the chunk is stored whole.
	Pages []ID
	// Bytes of the volume that were put.
	Bytes int64
}

// Put records a chunk that is stored, and what that adds to the statistics.
func (l *Ledger[ID]) Put(chunk int64, stored Stored[ID], add repository.WriteStats) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.check(chunk); err != nil {
		return err
	}
	index, within := l.layout.SegmentAt(chunk)
	s := l.open[index]
	if s == nil {
		s = &Segment[ID]{Index: index, Chunks: make([]ID, l.layout.SegmentChunks(index)), Pages: map[int64][]ID{}}
		l.open[index] = s
	}
	if stored.Pages != nil {
		s.Pages[within] = stored.Pages
	} else {
		s.Chunks[within] = stored.Whole
		s.whole++
	}
	if chunk == l.border {
		l.border = none
	}
	l.stats = l.stats.Plus(add)
	l.unrecorded += stored.Bytes
	return nil
}

// Next closes the next segment that ends at the given chunk or before it, and
// returns it. There is none when ok is false. The adapter seals a segment before it
// asks for another one.
func (l *Ledger[ID]) Next(chunk int64) (_ Segment[ID], ok bool, _ error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	end := (l.frontier + 1) * l.layout.SegmentSize()
	switch {
	case l.state != writing || l.sealing:
		return Segment[ID]{}, false, ErrOver
	case chunk < 0 || chunk > l.layout.Chunks():
		return Segment[ID]{}, false, fmt.Errorf("chunk %d is beyond the end of the volume at %d", chunk, l.layout.Chunks())
	case l.frontier == l.layout.Segments() || min(end, l.layout.PaddedSize()) > chunk*l.layout.ChunkSize():
		return Segment[ID]{}, false, nil
	case l.border != none && l.border*l.layout.ChunkSize() < end:
		return Segment[ID]{}, false, fmt.Errorf("the size differs from the parent's and chunk %d, where one of them ends, was not put", l.border)
	}
	s := Segment[ID]{Index: l.frontier}
	if put := l.open[l.frontier]; put != nil {
		s = *put
	}
	delete(l.open, l.frontier)
	l.frontier++
	l.sealing = true
	return s, true, nil
}

// Sealed records that the segment which Next has returned is stored.
func (l *Ledger[ID]) Sealed(add repository.WriteStats) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sealing = false
	l.stats = l.stats.Plus(add)
}

// Add adds to the statistics.
func (l *Ledger[ID]) Add(add repository.WriteStats) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats = l.stats.Plus(add)
}

// Stats is what was added.
func (l *Ledger[ID]) Stats() repository.WriteStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}

// Due reports whether a checkpoint should be made. It leaves room in the interval for
// what a checkpoint does not record: the segment that is written, and what is in
// flight.
func (l *Ledger[ID]) Due() bool {
	interval := l.interval
	if interval == 0 {
		interval = repository.DefaultCheckpointInterval
	}
	threshold := max(interval-l.layout.SegmentSize()-repository.MaxInFlight, l.layout.SegmentSize())
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unrecorded >= threshold
}

// Progress is what a checkpoint is made of.
type Progress[ID comparable] struct {
	// Sealed is how many segments are sealed.
	Sealed int64
	// Chunks and Pages are stored, and belong to segments that are open.
	Chunks, Pages []ID
}

// Progress returns what is stored so far. It fails where a segment was closed and
// could not be sealed.
func (l *Ledger[ID]) Progress() (Progress[ID], error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state != writing || l.sealing {
		return Progress[ID]{}, ErrOver
	}
	p := Progress[ID]{Sealed: l.frontier}
	var nothing ID
	named := func(to, ids []ID) []ID {
		return append(to, slices.DeleteFunc(slices.Clone(ids), func(id ID) bool { return id == nothing })...)
	}
	for _, s := range l.open {
		p.Chunks = named(p.Chunks, s.Chunks)
		for _, pages := range s.Pages {
			p.Pages = named(p.Pages, pages)
		}
	}
	return p, nil
}

// Recorded says that a checkpoint is made.
func (l *Ledger[ID]) Recorded() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unrecorded = 0
}

// Fail ends a ledger that is writing by an error, and returns the error.
func (l *Ledger[ID]) Fail(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == writing {
		l.state = failed
	}
	return err
}

// Complete fails unless the image is complete. Nothing may be put any more.
func (l *Ledger[ID]) Complete() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.complete()
}

func (l *Ledger[ID]) complete() error {
	if l.state != writing || l.frontier < l.layout.Segments() || l.sealing {
		return ErrOver
	}
	return nil
}

// Finish ends a ledger whose image is complete. It fails in every state but Writing.
func (l *Ledger[ID]) Finish() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.complete(); err != nil {
		return err
	}
	l.state = ended
	return nil
}

// End ends a ledger. It reports whether that was still to be done.
func (l *Ledger[ID]) End() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == ended {
		return false
	}
	l.state = ended
	clear(l.open)
	return true
}
