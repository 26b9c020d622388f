package xfs

import (
	"errors"
	"fmt"

	"github.com/blockmover/blockmover/internal/filesystem"
)

// logEnds is the part of the log to replay: from tail to head, which is the first sector that is not part of it.
type logEnds struct {
	head, tail int64
	// inFlight is how many sectors may have been on their way to the device at once.
	inFlight int64
	clean    bool
}

// ends finds the head and the tail of the log as xlog_find_tail does.
func (l *logReader) ends() (logEnds, error) {
	head, err := l.findHead()
	if err != nil {
		return logEnds{}, fmt.Errorf("find the head of the log: %w", err)
	}
	if head == 0 {
		if c, err := l.cycle(0); err != nil || c == 0 {
			return logEnds{clean: true}, err // a log of zeros
		}
	}
	last, found, err := l.seekBack(head, l.super.logSectors, 1)
	if err != nil {
		return logEnds{}, err
	}
	if !found {
		return logEnds{}, damaged("the log has no record")
	}
	if clean, err := l.unmounted(last, head); err != nil || clean {
		return logEnds{clean: clean}, err
	}
	return l.verify(last, head)
}

// unmounted reports whether the last record is the one that an unmount writes.
func (l *logReader) unmounted(last recordHeader, head int64) (bool, error) {
	size := l.super.logSectors
	if last.operations != 1 || (last.at+last.headSectors+last.dataSectors())%size != head%size {
		return false, nil
	}
	b, err := l.sectors(last.at+last.headSectors, 1)
	return err == nil && b[9]&operationUnmount != 0, err
}

// verify trims what was torn at both ends: records whose checksum is wrong, near enough to the head to have been on their way
// when the system stopped.
func (l *logReader) verify(last recordHeader, head int64) (logEnds, error) {
	tail := lsnBlock(last.tail)
	if tail >= l.super.logSectors {
		return logEnds{}, damaged("the tail of the log is at sector %d of %d", tail, l.super.logSectors)
	}
	from, _, err := l.seekBack(head, l.distance(tail, head), maxRecords)
	if err != nil {
		return logEnds{}, err
	}
	bad, err := l.firstBad(from.at, head)
	if err != nil {
		return logEnds{}, err
	}
	if bad >= 0 {
		good, found, err := l.seekBack(bad, l.distance(tail, bad), 1)
		if err != nil {
			return logEnds{}, err
		}
		if !found {
			return logEnds{}, damaged("the last records of the log are damaged, from sector %d on", bad)
		}
		head, tail, last = bad, lsnBlock(good.tail), good
		if clean, err := l.unmounted(last, head); err != nil || clean {
			return logEnds{clean: clean}, err
		}
		if head == tail || tail >= l.super.logSectors {
			return logEnds{}, damaged("the log has no whole record before sector %d", head)
		}
	}
	return logEnds{head: head, tail: tail, inFlight: maxRecords * max(last.iclogSize, cycleBytes) / sector}, nil
}

// nextTail returns where to begin instead if the record at bad is damaged. The tail may have been written over just before
// the system stopped: by as much as was on its way.
func (l *logReader) nextTail(ends logEnds, bad int64) (int64, error) {
	if l.distance(ends.head, bad) > ends.inFlight {
		return 0, damaged("the log record at sector %d is damaged", bad)
	}
	return l.seek((bad+1)%l.super.logSectors, ends.head, 1)
}

// distance is how many sectors there are from one position on to another.
func (l *logReader) distance(from, to int64) int64 {
	d := (to - from) % l.super.logSectors
	if d <= 0 {
		d += l.super.logSectors
	}
	return d
}

// seekBack returns the header of the count-th record before a position, or of the first of fewer, in the last most sectors.
func (l *logReader) seekBack(before, most int64, count int) (h recordHeader, found bool, err error) {
	size := l.super.logSectors
	for i := int64(1); i <= min(most, size) && count > 0; i++ {
		at := (before - i + size) % size
		b, err := l.sectors(at, 1)
		if err != nil {
			return h, false, err
		}
		if other, is := l.parseHeader(at, b); is {
			h, found = other, true
			count--
		}
	}
	return h, found, nil
}

// seek returns the position of the count-th record from a position on, before end.
func (l *logReader) seek(from, end int64, count int) (int64, error) {
	for i := range l.distance(from, end) {
		at := (from + i) % l.super.logSectors
		b, err := l.sectors(at, 1)
		if err != nil {
			return 0, err
		}
		if _, is := l.parseHeader(at, b); is {
			if count--; count == 0 {
				return at, nil
			}
		}
	}
	return 0, damaged("the log has no record between sectors %d and %d", from, end)
}

// records calls do with each record from a position on, before end. A record that is damaged is a *recordError.
func (l *logReader) records(from, end int64, do func(h recordHeader, data []byte) error) error {
	at := from
	for left := l.distance(from, end); left > 0; {
		h, data, err := l.record(at)
		if err == nil && h.headSectors+h.dataSectors() > left {
			err = damaged("the log record at sector %d runs into the head of the log", at)
		}
		if err != nil {
			return &recordError{at, err}
		}
		if err := do(h, data); err != nil {
			return err
		}
		n := h.headSectors + h.dataSectors()
		at, left = (at+n)%l.super.logSectors, left-n
	}
	return nil
}

// recordError says which record has an error.
type recordError struct {
	at    int64
	cause error
}

func (e *recordError) Error() string { return e.cause.Error() }
func (e *recordError) Unwrap() error { return e.cause }

// firstBad returns the position of the first damaged record, or -1.
func (l *logReader) firstBad(from, end int64) (int64, error) {
	err := l.records(from, end, func(recordHeader, []byte) error { return nil })
	var bad *recordError
	if errors.As(err, &bad) && errors.Is(err, filesystem.ErrDamaged) {
		return bad.at, nil
	}
	return -1, err
}

// findHead returns the position after the last whole record (xlog_find_head). Cycle numbers fall by one there.
func (l *logReader) findHead() (int64, error) {
	size := l.super.logSectors
	first, err := l.cycle(0)
	if err != nil || first == 0 {
		return 0, err
	}
	last, err := l.cycle(size - 1)
	if err != nil {
		return 0, err
	}
	// head is one past the end if all of the ring has one cycle number; stop is what must not be found before head.
	head, stop := size, last-1
	if first != last {
		if head, err = l.cycleStart(last); err != nil {
			return 0, err
		}
		stop = last
	}
	// Records are written out of order. A hole with the number of the round before, not further back than all that may be
	// under way at once, is where the log ends.
	window := int64(maxRecords * maxRecord / sector)
	if !l.super.logV2 {
		window = maxRecords * cycleBytes / sector
	}
	hole := int64(-1)
	if back := window - head; back > 0 && first != last && last != 0 {
		hole, err = l.findCycle(max(size-back, head), size, stop-1)
	}
	if err == nil && hole < 0 {
		hole, err = l.findCycle(max(0, head-window), head, stop)
	}
	if err != nil {
		return 0, err
	}
	if hole >= 0 {
		head = hole
	}
	return l.recordEnd(head)
}

// cycleStart searches the first sector with a cycle number, which the last sector has.
func (l *logReader) cycleStart(cycle uint32) (int64, error) {
	low, high := int64(0), l.super.logSectors-1
	for high-low > 1 {
		mid := (low + high) / 2
		c, err := l.cycle(mid)
		if err != nil {
			return 0, err
		}
		if c == cycle {
			high = mid
		} else {
			low = mid
		}
	}
	return high, nil
}

// findCycle returns the first sector in [from, end) with a cycle number, or -1.
func (l *logReader) findCycle(from, end int64, cycle uint32) (int64, error) {
	for at := from; at < end; at++ {
		c, err := l.cycle(at)
		if err != nil {
			return 0, err
		}
		if c == cycle {
			return at, nil
		}
	}
	return -1, nil
}

// recordEnd returns head, or the start of the record before it if head is in the middle of that record.
func (l *logReader) recordEnd(head int64) (int64, error) {
	last, found, err := l.seekBack(head, maxRecord/sector+maxRecord/cycleBytes+1, 1)
	if err != nil {
		return 0, err
	}
	if !found {
		return 0, damaged("there is no log record before sector %d", head)
	}
	size := l.super.logSectors
	if l.distance(last.at, head) != last.headSectors+last.dataSectors() {
		return last.at, nil
	}
	return head % size, nil
}

// checkMount reports an error if a record is of another file system, or of a machine that the log's byte order does not fit.
func (l *logReader) checkMount(h *recordHeader) error {
	switch {
	case h.format != formatLittleEndian:
		return unsupported("a log that was written by a machine with another byte order (format %d)", h.format)
	case h.uuid != l.super.uuid:
		return damaged("the log belongs to another file system (%s)", formatUUID(h.uuid))
	}
	return nil
}

func formatUUID(u [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
