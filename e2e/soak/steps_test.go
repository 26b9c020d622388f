package soak

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"
	"unsafe"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/internal/backup"
	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/kopia"
	"github.com/blockmover/blockmover/internal/restore"
)

// card is a kind of step. The deck has it several times.
type card struct {
	name  string
	count int
	play  func(*soak)
}

// cards are the deck, 40 in all.
var cards = []card{
	{"write", 6, func(s *soak) { s.write(s.pickVolume()) }},
	{"discard", 2, func(s *soak) { s.discard(s.pickVolume()) }},
	{"grow", 2, func(s *soak) { s.grow(s.pickVolume()) }},
	{"shrink", 2, func(s *soak) { s.shrink(s.pickVolume()) }},
	{"daily backup", 8, func(s *soak) { s.backup(s.pickVolume(), identity.ParentAuto) }},
	{"weekly full backup", 2, func(s *soak) { s.backup(s.pickVolume(), identity.ParentNone) }},
	{"backup on a parent by its ID", 1, func(s *soak) { s.backup(s.pickVolume(), "") }},
	{"two backups at once", 2, (*soak).backUpTwo},
	{"group backup", 2, (*soak).backUpGroup},
	{"delete", 3, (*soak).deleteAny},
	{"quick maintenance", 1, func(s *soak) { s.maintain("--safety=full") }},
	{"quick maintenance without safety", 1, func(s *soak) { s.maintain("--safety=none") }},
	{"full maintenance", 1, func(s *soak) { s.maintain("--full", "--safety=full") }},
	{"full maintenance without safety", 1, func(s *soak) { s.maintain("--full", "--safety=none") }},
	{"PVC made again", 1, func(s *soak) { s.replace(s.pickVolume()) }},
	{"driver as it should be", 1, func(s *soak) { s.setOptions(defaultOptions()) }},
	{"driver with other blocks", 1, (*soak).otherBlocks},
	{"driver that cuts streams", 2, (*soak).cutStreams},
	{"driver that needs no base", 1, (*soak).needNoBase},
	{"backup while the driver refuses", 1, (*soak).refused},
}

// draw takes a card. If there is none, it shuffles a new deck.
func (s *soak) draw() card {
	if len(s.deck) == 0 {
		for _, c := range cards {
			for range c.count {
				s.deck = append(s.deck, c)
			}
		}
		s.rnd.Shuffle(len(s.deck), func(i, j int) { s.deck[i], s.deck[j] = s.deck[j], s.deck[i] })
	}
	c := s.deck[0]
	s.deck = s.deck[1:]
	return c
}

// newVolume gives a PVC a new volume, and writes to it.
func (s *soak) newVolume(v *volume) {
	s.Helper()
	v.blockSize = 512
	if s.chance(3) {
		v.blockSize = 4096
	}
	v.data = make([]byte, s.sizeAbove(mib, firstMaxSize, v.blockSize))
	v.handle = s.storage.create(s.name("volume"), int64(len(v.data)), v.blockSize, "")
	s.storage.publish(v.handle, false)
	s.say("%s is volume %s of %d bytes in blocks of %d", v.key, v.handle, len(v.data), v.blockSize)
	s.write(v)
}

// sizeAbove returns a size above low and up to high. It is a whole number of units, and
// usually of nothing larger.
func (s *soak) sizeAbove(low, high, unit int64) int64 {
	for _, larger := range []int64{64 << 10, mib, 8 * mib} { // a chunk, what is usual, a segment
		if s.chance(6) && unit < larger && low/larger < high/larger {
			unit = larger
		}
	}
	return (low/unit + 1 + s.rnd.Int64N(high/unit-low/unit)) * unit
}

// write makes some writes of many sizes, with and without the page cache.
func (s *soak) write(v *volume) {
	s.Helper()
	n := 1 + s.rnd.IntN(16)
	var total int64
	for range n {
		unit, flag := int64(1), os.O_WRONLY
		if s.chance(2) {
			unit, flag = v.blockSize, os.O_WRONLY|unix.O_DIRECT
		}
		e := s.extent(int64(len(v.data)), unit)
		data := device.NewBuffer(int(e.Length))
		s.fill(v, data)
		file, err := os.OpenFile(s.storage.device(v.handle), flag, 0)
		require.NoError(s, err)
		_, err = file.WriteAt(data, e.Offset)
		require.NoError(s, errors.Join(err, file.Close()), "write %s", e)
		copy(v.data[e.Offset:], data)
		total += e.Length
	}
	s.say("%d writes of %d bytes to %s", n, total, v.key)
}

// extent draws a range of a volume in units. It is usually short, and often at the end.
func (s *soak) extent(size, unit int64) block.Extent {
	units := size / unit
	longest := []int64{512, 4 << 10, 16 << 10, 64 << 10, 300 << 10, 2 * mib}[s.rnd.IntN(6)]
	length := 1 + s.rnd.Int64N(max(min(longest/unit, units), 1))
	first := s.rnd.Int64N(units - length + 1)
	if s.chance(8) {
		first = units - length
	}
	return block.Extent{Offset: first * unit, Length: length * unit}
}

// fill draws what is written: noise, zeros, text, or a copy of another part of the volume.
func (s *soak) fill(v *volume, data []byte) {
	switch s.rnd.IntN(5) {
	case 0:
		clear(data)
	case 1:
		text := []byte(s.name("a line of text, "))
		for i := range data {
			data[i] = text[i%len(text)]
		}
	case 2:
		copy(data, v.data[s.rnd.Int64N(int64(len(v.data)-len(data)+1)):])
	default:
		_, _ = s.noise.Read(data) // never fails
	}
}

func (s *soak) discard(v *volume) {
	s.Helper()
	file, err := os.OpenFile(s.storage.device(v.handle), os.O_WRONLY, 0)
	require.NoError(s, err)
	n := 1 + s.rnd.IntN(8)
	for range n {
		e := s.extent(int64(len(v.data)), v.blockSize)
		if s.chance(8) { // as mkfs does
			e = block.Extent{Length: int64(len(v.data))}
		}
		span := [2]uint64{uint64(e.Offset), uint64(e.Length)}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span)))
		require.Zero(s, errno, "discard %s", e)
		clear(v.data[e.Offset:e.End()])
	}
	require.NoError(s, file.Close())
	s.say("%d discards of %s", n, v.key)
}

func (s *soak) grow(v *volume) {
	s.Helper()
	old := int64(len(v.data))
	high := min(old+10*mib, maxSize)
	if high-old < v.blockSize {
		s.say("%s is as large as it may be", v.key)
		return
	}
	size := s.sizeAbove(old, high, v.blockSize)
	s.storage.grow(v.handle, size)
	v.data = append(v.data, make([]byte, size-old)...)
	s.say("%s grows from %d to %d bytes", v.key, old, size)
	if s.chance(2) {
		s.backup(v, identity.ParentAuto)
	}
}

// shrink replaces the volume by a smaller one with its handle.
func (s *soak) shrink(v *volume) {
	s.Helper()
	old := int64(len(v.data))
	size := s.sizeAbove(max(old-10*mib, 0), old, v.blockSize)
	// The kernel may keep what a shrinking device had beyond its new end.
	s.storage.unpublish(v.handle)
	o := s.options
	o.ShrinkTo = map[string]int64{v.handle: size}
	s.setOptions(o)
	require.Equal(s, size, s.storage.size(v.handle))
	o.ShrinkTo = nil
	s.setOptions(o)
	s.storage.publish(v.handle, false)
	v.data = slices.Clone(v.data[:size])
	s.say("%s shrinks from %d to %d bytes", v.key, old, size)
	if s.chance(2) {
		s.backup(v, identity.ParentAuto)
	}
}

// replace deletes the PVC and makes it again under its name.
func (s *soak) replace(v *volume) {
	s.Helper()
	s.storage.unpublish(v.handle)
	s.storage.deleteVolume(v.handle)
	s.newVolume(v)
	s.releaseRetained()
}

// maintain runs stock kopia's maintenance. Without safety it must be alone, which it is
// between two steps.
func (s *soak) maintain(args ...string) {
	s.Helper()
	s.say("maintenance %v", args)
	s.kopia.run(append([]string{"maintenance", "run"}, args...)...)
}

func (s *soak) deleteAny() {
	s.Helper()
	if len(s.backups) == 0 {
		s.say("there is no backup to delete")
		return
	}
	s.deleteBackup(s.backups[s.rnd.IntN(len(s.backups))])
}

func (s *soak) deleteBackup(b *saved) {
	s.Helper()
	store := s.open()
	require.NoError(s, store.Delete(s.ctx, b.id))
	s.close(store)
	s.backups = slices.DeleteFunc(s.backups, func(other *saved) bool { return other == b })
	s.say("%s of %s is deleted", b.name, b.volume)
	s.releaseRetained()
}

// of returns the backups of a volume's name, oldest first.
func (s *soak) of(key repository.VolumeKey) []*saved {
	var found []*saved
	for _, b := range s.backups {
		if b.volume == key {
			found = append(found, b)
		}
	}
	return found
}

func (s *soak) anyParent(v *volume) string {
	if all := s.of(v.key); len(all) > 0 {
		return string(all[s.rnd.IntN(len(all))].id)
	}
	return identity.ParentAuto
}

// releaseRetained deletes the storage snapshots that retainSnapshot: auto does not keep,
// because the backup or the volume is gone, or a newer one is kept.
func (s *soak) releaseRetained() {
	s.Helper()
	for handle, b := range s.retained {
		needed := slices.Contains(s.backups, b) && slices.ContainsFunc(s.volumes, func(v *volume) bool { return v.handle == b.handle })
		for _, other := range s.retained {
			if other.handle == b.handle && slices.Index(s.backups, other) > slices.Index(s.backups, b) {
				needed = false
			}
		}
		if !needed {
			delete(s.retained, handle)
			s.deleteSnapshot(handle)
		}
	}
}

// deleteSnapshot deletes a storage snapshot that is not retained. A member of a group goes with
// its group, once no member is retained.
func (s *soak) deleteSnapshot(handle string) {
	s.Helper()
	group := s.groupOf(handle)
	if group == "" {
		s.storage.deleteSnapshot(handle)
		s.forget(handle)
		return
	}
	members := s.groups[group]
	if slices.ContainsFunc(members, func(member string) bool { return s.retained[member] != nil }) {
		s.storage.requireMember(handle)
		return
	}
	s.storage.deleteGroup(group, members)
	s.forget(members...)
	delete(s.groups, group)
	s.done["group deleted"]++
}

func (s *soak) forget(deleted ...string) {
	for _, handle := range deleted {
		if !s.options.RequireBaseSnapshotForDelta {
			s.ghosts[handle] = true
		}
	}
}

// groupOf returns the group of a storage snapshot, or "".
func (s *soak) groupOf(handle string) string {
	for group, members := range s.groups {
		if slices.Contains(members, handle) {
			return group
		}
	}
	return ""
}

// isBase reports whether the driver tells what changed since a backup. A member of a group is a
// base as long as the group exists.
func (s *soak) isBase(b *saved) bool {
	return s.retained[b.snapshot] != nil || s.groupOf(b.snapshot) != "" || s.ghosts[b.snapshot] && !s.options.RequireBaseSnapshotForDelta
}

// outcome is what a backup must be.
type outcome struct {
	kind    repository.Kind
	parent  *saved
	reasons []chain.Reason
}

// predict returns what the next backup of a volume must be: the ladder of package chain, by
// what the model knows.
func (s *soak) predict(v *volume, asked string) outcome {
	o := outcome{kind: repository.Full}
	note := func(r chain.Reason) {
		if !slices.Contains(o.reasons, r) {
			o.reasons = append(o.reasons, r)
		}
	}
	history := s.of(v.key)
	slices.Reverse(history)
	var parents []*saved
	named := asked != identity.ParentAuto && asked != identity.ParentNone
	switch {
	case asked == identity.ParentNone:
		note(chain.ForcedFull)
		history = nil
	case named && !slices.ContainsFunc(history, func(b *saved) bool { return string(b.id) == asked }):
		note(chain.ParentGone) // deleted since it was asked for
	case !named && len(history) == 0:
		note(chain.NoParent)
	}
	for _, b := range history {
		switch {
		case named && string(b.id) != asked:
		case b.handle == v.handle:
			parents = append(parents, b)
		case len(parents) == 0:
			note(chain.VolumeReplaced)
		}
	}
	for _, b := range parents {
		if s.isBase(b) && !s.options.RefuseDelta {
			o.kind, o.parent = repository.Incremental, b
			return o
		}
		note(chain.DeltaFailed)
	}
	if s.options.RefuseAllocated {
		note(chain.AllocatedFailed)
	}
	return o
}

// job is a backup that runs.
type job struct {
	*saved
	source *volume
	asked  string
	want   outcome
	taken  time.Time
	// clone is that of the storage snapshot, with its device.
	clone, path string
	// store is that of the job alone, as for a mover pod.
	store *kopia.Store
	dev   device.Reader
	// run is how the backup begins. It continues once proceed has a value: nil, or the error
	// that ends it.
	run     backup.Result
	proceed chan error
	// ended has the error of the backup.
	ended chan error
}

// Errors that end a backup after it has begun: one that may pass keeps the hold for another
// attempt, which never comes here, and a final one drops it.
var (
	errGivenUp = errors.New("given up")
	errRefused = fault.Mark(errors.New("refused"))
)

// fate draws how a backup goes on.
func (s *soak) fate(j *job) error {
	switch {
	case !s.chance(8):
		return nil
	case s.chance(2):
		s.done["refused"]++
		s.say("%s is refused", j.name)
		return errRefused
	}
	s.done["given up"]++
	s.say("%s is given up", j.name)
	s.kept[j.name] = true
	return errGivenUp
}

// backup makes one, with "" as what is asked for on any parent by its ID.
func (s *soak) backup(v *volume, asked string) {
	s.Helper()
	s.expire(v)
	if asked == "" {
		asked = s.anyParent(v)
	}
	s.backUp(s.job(v, asked))
}

// backUpTwo makes two at once, sometimes of one volume.
func (s *soak) backUpTwo() {
	s.Helper()
	v, w := s.pickVolume(), s.pickVolume()
	s.expire(v)
	s.expire(w)
	s.backUp(s.job(v, identity.ParentAuto), s.job(w, identity.ParentAuto))
}

// backUpGroup backs up all volumes as they are at one instant.
func (s *soak) backUpGroup() {
	s.Helper()
	var jobs []*job
	var handles []string
	for _, v := range s.volumes {
		s.expire(v)
		if s.chance(2) {
			s.write(v)
		}
		handles = append(handles, v.handle)
		jobs = append(jobs, s.newJob(v, identity.ParentAuto))
	}
	group, snapshots := s.storage.groupSnapshot(s.name("group"), handles)
	for _, j := range jobs {
		s.groups[group] = append(s.groups[group], snapshots[j.handle].GetSnapshotId())
		if s.chance(2) {
			s.write(j.source)
		}
	}
	s.say("group %s", group)
	for _, j := range jobs {
		s.expose(j, snapshots[j.handle])
	}
	s.backUp(jobs...)
}

// expire deletes a backup of a volume that has many, usually the oldest.
func (s *soak) expire(v *volume) {
	s.Helper()
	if all := s.of(v.key); len(all) >= backupsPerVolume {
		n := 0
		if s.chance(3) {
			n = s.rnd.IntN(len(all))
		}
		s.deleteBackup(all[n])
	}
}

// job takes a storage snapshot while the volume is written to.
func (s *soak) job(v *volume, asked string) *job {
	s.Helper()
	if s.chance(2) {
		s.write(v)
	}
	j := s.newJob(v, asked)
	snapshot := s.storage.snapshot(j.name, v.handle)
	if s.chance(2) {
		s.write(v)
	}
	s.expose(j, snapshot)
	return j
}

// newJob is a backup of a volume as it is now.
func (s *soak) newJob(v *volume, asked string) *job {
	b := &saved{name: s.name("backup"), volume: v.key, handle: v.handle, data: bytes.Clone(v.data)}
	return &job{saved: b, source: v, asked: asked}
}

// expose makes a device of the storage snapshot of a job.
func (s *soak) expose(j *job, snapshot *csi.Snapshot) {
	s.Helper()
	j.snapshot, j.taken = snapshot.GetSnapshotId(), snapshot.GetCreationTime().AsTime()
	j.clone = s.storage.create(s.name("clone"), 0, j.source.blockSize, j.snapshot)
	j.path = s.storage.publish(j.clone, true)
	s.requireContent("the storage snapshot itself", j.path, j.data)
}

// backUp does with the jobs what mover pods do, all at once, and with the storage snapshots
// what the manager does afterwards.
func (s *soak) backUp(jobs ...*job) {
	s.Helper()
	for _, j := range jobs {
		s.beside[j.name] = len(jobs) > 1
		s.begin(j)
	}
	var deleted *saved
	if parent := jobs[0].want.parent; parent != nil && s.chance(6) {
		deleted = parent
		s.done["parent deleted meanwhile"]++
		for _, j := range jobs {
			s.beside[j.name] = true
		}
		s.deleteBackup(parent)
		s.maintain("--full", "--safety=full")
	}
	for _, j := range jobs {
		j.proceed <- s.fate(j)
	}
	var again []*job
	for _, j := range jobs {
		err := <-j.ended
		switch {
		case errors.Is(err, errGivenUp), errors.Is(err, errRefused):
		case deleted != nil && j.want.parent == deleted:
			require.ErrorIs(s, err, repository.ErrParentDeleted)
			again = append(again, j)
		default:
			require.NoError(s, err)
		}
		s.finish(j)
	}
	for _, j := range again {
		s.begin(j)
		j.proceed <- nil
		require.NoError(s, <-j.ended)
		s.finish(j)
	}
	for _, j := range jobs {
		s.storage.unpublish(j.clone)
		s.storage.deleteVolume(j.clone)
		// The group may have gone with another member of it.
		if s.retained[j.snapshot] == nil && !s.ghosts[j.snapshot] {
			s.deleteSnapshot(j.snapshot)
		}
	}
	s.releaseRetained()
}

// finish closes what a job has open, and remembers what it has saved.
func (s *soak) finish(j *job) {
	s.Helper()
	require.NoError(s, j.dev.Close())
	s.close(j.store)
	if j.id == "" {
		return
	}
	s.say("%s is %s", j.name, j.id)
	s.backups = append(s.backups, j.saved)
	if s.options.RequireBaseSnapshotForDelta {
		s.retained[j.snapshot] = j.saved
	}
}

// begin checks that the backup begins as the model predicts.
func (s *soak) begin(j *job) {
	s.Helper()
	j.store, j.proceed, j.ended = s.open(), make(chan error, 1), make(chan error, 1)
	begun := make(chan backup.Result, 1)
	var history []repository.Snapshot
	way := backup.Job{
		Store:     j.store,
		Volume:    j.volume,
		Operation: j.name,
		Open: func() (dev device.Reader, err error) {
			j.dev, err = device.Open(j.path)
			return j.dev, err
		},
		Plan: func(_ context.Context, dev device.Reader, found []repository.Snapshot) (chain.Input, error) {
			history = found
			return s.plan(j, dev), nil
		},
		Begun: func(r backup.Result) error {
			begun <- r
			return <-j.proceed
		},
		Options: datapath.Options{Workers: s.rnd.IntN(5), ReadSize: s.rnd.Int64N(3) * mib},
		Now:     time.Now,
	}
	go func() {
		result, err := backup.Run(s.ctx, way)
		j.id = result.SnapshotID
		j.ended <- err
	}()
	select {
	case j.run = <-begun:
	case err := <-j.ended:
		require.NoError(s, err)
	}
	s.Cleanup(func() { // the test may end before the job
		select {
		case j.proceed <- errGivenUp:
		default:
		}
		_ = j.dev.Close()
	})
	expected := s.of(j.volume)
	slices.Reverse(expected)
	require.Len(s, history, len(expected))
	for i, h := range history {
		require.NoError(s, h.Damage)
		require.Equal(s, expected[i].id, h.ID)
	}
	j.want = s.predict(j.source, j.asked)
	s.requireOutcome(j)
}

// plan returns the input of the choice of the parent.
func (s *soak) plan(j *job, dev device.Reader) chain.Input {
	return chain.Input{
		Request: chain.Request{Parent: j.asked, Now: j.taken, Target: repository.Meta{
			Size: dev.Size(), Driver: driverName, VolumeHandle: j.handle,
			SnapshotHandle: j.snapshot, ChangeID: j.snapshot, SnapshotTime: j.taken, Mover: identity.DataMover,
		}},
		Source:  source{client: s.storage.metadata, target: j.snapshot, maxResults: s.options.maxResults},
		Collect: cbt.Options{Backoff: time.Millisecond},
		Audit:   []policy.Percent{0, policy.DefaultAudit, 100}[s.rnd.IntN(3)],
	}
}

func (s *soak) requireOutcome(j *job) {
	s.Helper()
	run := j.run
	s.say("%s of %s, %d bytes: %s since %q, reasons %v, %d blocks, %d resumptions, %d bytes to read, %d chunks audited %s", j.name, j.volume, len(j.data),
		run.Kind, run.Parent, run.Reasons, run.Source.Blocks, run.Source.Resumptions, run.ToRead, run.Audited.Chunks, run.Detail)
	var parent repository.SnapshotID
	if j.want.parent != nil {
		parent = j.want.parent.id
	}
	require.Equal(s, j.want.kind, run.Kind)
	require.Equal(s, parent, run.Parent)
	require.Equal(s, j.want.reasons, run.Reasons)
	require.False(s, run.Audited.Differs)
	// All streams except the one that is resumed fail before their first message.
	var resumptions int64
	if n := s.options.BreakStreamAfterMessages; n > 0 && run.Source.Messages > 0 {
		resumptions = (run.Source.Messages - 1) / n
	}
	require.Equal(s, resumptions, run.Source.Resumptions)
	s.count(j)
}

// count records what was special about a backup.
func (s *soak) count(j *job) {
	s.done[string(j.run.Kind)]++
	for _, r := range j.run.Reasons {
		s.done[string(r)]++
	}
	parent := j.want.parent
	if parent == nil {
		return
	}
	all := s.of(j.volume)
	for what, is := range map[string]bool{
		"Incremental with resumptions":                 j.run.Source.Resumptions > 0,
		"Incremental after a resize":                   len(parent.data) != len(j.data),
		"Incremental on an older parent":               parent != all[len(all)-1],
		"Incremental on a base that is gone":           s.ghosts[parent.snapshot],
		"Incremental on a member that is not retained": s.groupOf(parent.snapshot) != "" && s.retained[parent.snapshot] == nil,
		"Incremental that is audited":                  j.run.Audited.Chunks > 0,
		"Incremental of a volume made anew":            all[0].handle != j.handle,
		"Incremental with no block that changed":       j.run.Source.Blocks == 0,
	} {
		if is {
			s.done[what]++
		}
	}
}

// restore writes an image onto a new device with other bytes.
func (s *soak) restore(store *kopia.Store, b *saved) {
	s.Helper()
	size, blockSize := int64(len(b.data)), int64(512)
	small := s.chance(10) && size > mib
	switch {
	case small:
		size = s.sizeAbove(size-mib, size-blockSize, blockSize)
	case s.chance(3):
		size += s.rnd.Int64N(2*mib/blockSize) * blockSize
	}
	if !small && s.chance(4) {
		blockSize = 4096
		size = (size + blockSize - 1) / blockSize * blockSize
	}
	target := s.storage.create(s.name("target"), size, blockSize, "")
	path := s.storage.publish(target, false)
	old := s.oldBytes(b, size)
	require.NoError(s, os.WriteFile(path, old, 0), "fill target")

	_, err := restore.Run(s.ctx, restore.Job{
		Store:    store,
		Snapshot: b.id,
		Open:     func(int64) (device.Writer, error) { return device.OpenWriter(path) },
		Options: datapath.Options{
			Workers: s.rnd.IntN(5), ReadSize: s.rnd.Int64N(3) * mib, Verify: s.chance(3), Resume: s.chance(3),
		},
	})
	if small {
		require.ErrorIs(s, err, datapath.ErrTooSmall)
		s.requireContent("a target that is too small", path, old)
		s.done["target too small"]++
	} else {
		require.NoError(s, err, "restore %s", b.name)
		s.requireContent("restored "+b.name, path, b.data)
		s.done["restored"]++
	}
	s.storage.unpublish(target)
	s.storage.deleteVolume(target)
}

// oldBytes returns what a target holds before: noise, or another backup.
func (s *soak) oldBytes(b *saved, size int64) []byte {
	old := make([]byte, size)
	other := s.backups[s.rnd.IntN(len(s.backups))]
	if other != b && s.chance(2) {
		copy(old, other.data)
		return old
	}
	noise := old[:min(size, mib)]
	_, _ = s.noise.Read(noise)
	for filled := len(noise); filled < len(old); filled *= 2 {
		copy(old[filled:], old[:filled])
	}
	return old
}

// options are those of the driver's options file that a soak changes.
type options struct {
	BlockType                   string           `json:"blockType"`
	BlockSize                   int64            `json:"blockSize"`
	OverrunTail                 bool             `json:"overrunTail"`
	RequireBaseSnapshotForDelta bool             `json:"requireBaseSnapshotForDelta"`
	BreakStreamAfterMessages    int64            `json:"breakStreamAfterMessages"`
	RefuseDelta                 bool             `json:"refuseDelta"`
	RefuseAllocated             bool             `json:"refuseAllocated"`
	ShrinkTo                    map[string]int64 `json:"shrinkTo,omitempty"`

	// maxResults is how many blocks a message is asked for. 0 is the driver's default.
	maxResults int32
}

func defaultOptions() options {
	return options{BlockType: "FIXED", BlockSize: 64 << 10, RequireBaseSnapshotForDelta: true}
}

func (s *soak) setOptions(o options) {
	s.Helper()
	content, err := json.Marshal(o)
	require.NoError(s, err)
	require.NoError(s, os.WriteFile(filepath.Join(s.storage.stateDir(), "options.json"), content, 0o600))
	s.options = o
}

// otherBlocks makes the driver use blocks that are smaller or larger than a page, a chunk or
// a segment. Large blocks report more than what changed.
func (s *soak) otherBlocks() {
	s.Helper()
	o := s.options
	o.BlockType = []string{"FIXED", "VARIABLE"}[s.rnd.IntN(2)]
	o.BlockSize = 512 << s.rnd.IntN(15) // to 8 MiB
	o.OverrunTail = s.chance(2)
	o.BreakStreamAfterMessages = 0
	o.maxResults = 4096
	s.setOptions(o)
	s.say("driver has %s blocks of %d bytes", o.BlockType, o.BlockSize)
}

// cutStreams makes the driver break every stream after a few messages of a few
// blocks, and backs up a volume before and after it has changed in many places.
func (s *soak) cutStreams() {
	s.Helper()
	o := s.options
	// 64 MiB have at most 512 messages of 4 blocks of 32 KiB: more than 1000
	// resumptions would be too many.
	o.BlockSize = 32 << 10 << s.rnd.IntN(3)
	o.BreakStreamAfterMessages = 1 + s.rnd.Int64N(3)
	o.maxResults = 4
	s.setOptions(o)
	s.say("driver has %s blocks of %d bytes and cuts streams after %d messages of %d", o.BlockType, o.BlockSize, o.BreakStreamAfterMessages, o.maxResults)
	v := s.pickVolume()
	s.backup(v, identity.ParentAuto)
	for range 10 {
		s.write(v)
	}
	s.backup(v, identity.ParentAuto)
}

// needNoBase makes the driver use snapshots as bases that are deleted from now on, so that
// none are kept.
func (s *soak) needNoBase() {
	s.Helper()
	o := s.options
	o.RequireBaseSnapshotForDelta = false
	s.setOptions(o)
	s.say("driver needs no base")
}

// refused is a backup that the driver does not support.
func (s *soak) refused() {
	s.Helper()
	usual := s.options
	o := usual
	o.RefuseDelta = s.chance(2)
	o.RefuseAllocated = !o.RefuseDelta || s.chance(2)
	s.setOptions(o)
	s.say("driver refuses: delta %t, allocated %t", o.RefuseDelta, o.RefuseAllocated)
	s.backup(s.pickVolume(), []string{identity.ParentAuto, identity.ParentNone}[s.rnd.IntN(2)])
	s.setOptions(usual)
}
