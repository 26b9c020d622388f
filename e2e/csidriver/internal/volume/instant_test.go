package volume

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/loop"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/pooltest"
)

const (
	members = 3
	// groupTestTime is how long group snapshots are taken under a writer; a
	// machine that is not busy takes about 300 in it, and a busy one minGroups at least.
	groupTestTime = 2500 * time.Millisecond
	minGroups     = 20
	sector        = 4096
)

// TestGroupShowsOneInstant writes an ascending counter to three volumes in turn,
// without pause, each write when the one before has completed. In what shows one
// instant no volume is behind a later one, and the first is at most one ahead of
// the last.
func TestGroupShowsOneInstant(t *testing.T) {
	for _, flags := range []int{unix.O_DIRECT, unix.O_DSYNC} {
		t.Run(fmt.Sprintf("flags=%#x", flags), func(t *testing.T) {
			store := openStore(t)
			ids := writeToVolumes(t, store, flags)
			groups, last := 0, uint64(0)
			for began := time.Now(); groups < minGroups || time.Since(began) < groupTestTime; groups++ {
				counters := takeGroup(t, store, fmt.Sprintf("group-%d", groups), ids)
				if !ofOneInstant(counters) {
					t.Fatalf("group %d shows %v, which was never so", groups, counters)
				}
				last = counters[0]
			}
			t.Logf("%d groups while the counter went to %d", groups, last)
			if last < minGroups {
				t.Errorf("%d groups while the counter went to %d prove nothing", groups, last)
			}
		})
	}
}

// TestSingleShowsOneInstant writes the counter to places of one volume.
func TestSingleShowsOneInstant(t *testing.T) {
	store := openStore(t)
	created, device := newDevice(t, store, "volume", 64<<20)
	file := openDevice(t, device, unix.O_DIRECT)
	places := []place{{file, 48 << 20}, {file, 0}, {file, 32 << 20}}
	writeInTurn(t, places)
	for i := range 200 {
		snapshot, err := store.CreateSnapshot(fmt.Sprintf("snapshot-%d", i), created.ID, 0)
		if err != nil {
			t.Fatal(err)
		}
		var counters []uint64
		for _, p := range places {
			counters = append(counters, readCounter(t, store.SnapshotPath(snapshot.ID), p.offset))
		}
		if !ofOneInstant(counters) {
			t.Fatalf("snapshot %d shows %v, which was never so", i, counters)
		}
	}
}

// TestSinglesDoNotShowOneInstant shows that the test above can fail: snapshots
// taken one after the other do not pass its check.
func TestSinglesDoNotShowOneInstant(t *testing.T) {
	store := openStore(t)
	ids := writeToVolumes(t, store, unix.O_DIRECT)
	const tries = 200
	for i := range tries {
		var counters []uint64
		for _, id := range ids {
			snapshot, err := store.CreateSnapshot(fmt.Sprintf("%s-%d", id, i), id, 0)
			if err != nil {
				t.Fatal(err)
			}
			counters = append(counters, readCounter(t, store.SnapshotPath(snapshot.ID), 0))
		}
		if !ofOneInstant(counters) {
			t.Logf("try %d shows %v", i, counters)
			return
		}
	}
	t.Errorf("%d times three snapshots one after the other looked like one instant", tries)
}

func ofOneInstant(counters []uint64) bool {
	for i := 1; i < len(counters); i++ {
		if counters[i] > counters[i-1] {
			return false
		}
	}
	return counters[0] <= counters[len(counters)-1]+1
}

func openStore(t *testing.T) *Store {
	t.Helper()
	opened, dir := pooltest.Open(t)
	store, err := Open(dir, opened)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// newDevice makes a volume and attaches it.
func newDevice(t *testing.T, store *Store, name string, size int64) (Volume, loop.Device) {
	t.Helper()
	created, err := store.CreateVolume(Spec{Name: name, BlockSize: 512, Size: size}, func(int64) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	device, err := loop.Attach(store.VolumePath(created.ID), loop.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return created, device
}

// place is where a counter is written to.
type place struct {
	file   *os.File
	offset int64
}

// writeToVolumes makes volumes and writes to them in turn until the test ends.
func writeToVolumes(t *testing.T, store *Store, flags int) (ids []string) {
	t.Helper()
	var places []place
	for i := range members {
		created, device := newDevice(t, store, fmt.Sprintf("member-%d", i), 64<<20)
		places = append(places, place{file: openDevice(t, device, flags)})
		ids = append(ids, created.ID)
	}
	writeInTurn(t, places)
	return ids
}

func openDevice(t *testing.T, device loop.Device, flags int) *os.File {
	t.Helper()
	file, err := os.OpenFile(device.Path, os.O_WRONLY|flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	})
	return file
}

// writeInTurn writes an ascending counter to the places until the test ends.
func writeInTurn(t *testing.T, places []place) {
	t.Helper()
	var stop atomic.Bool
	ended := make(chan error, 1)
	go func() { ended <- writeUntil(&stop, places) }()
	t.Cleanup(func() {
		stop.Store(true)
		if err := <-ended; err != nil {
			t.Errorf("writer: %v", err)
		}
	})
}

func writeUntil(stop *atomic.Bool, places []place) error {
	buffer := alignedSector()
	for counter := uint64(1); !stop.Load(); counter++ {
		binary.LittleEndian.PutUint64(buffer, counter)
		for _, p := range places {
			if _, err := p.file.WriteAt(buffer, p.offset); err != nil {
				return err
			}
		}
	}
	return nil
}

// alignedSector returns a buffer that O_DIRECT takes.
func alignedSector() []byte {
	buffer := make([]byte, 2*sector)
	skip := sector - int(uintptr(unsafe.Pointer(&buffer[0]))%sector)
	return buffer[skip : skip+sector]
}

func takeGroup(t *testing.T, store *Store, name string, ids []string) []uint64 {
	t.Helper()
	group, err := store.CreateGroup(name, ids, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, snapshots, err := store.Group(group.ID)
	if err != nil {
		t.Fatal(err)
	}
	counters := make([]uint64, len(ids))
	for i, id := range ids {
		for _, snapshot := range snapshots {
			if snapshot.VolumeID == id {
				counters[i] = readCounter(t, store.SnapshotPath(snapshot.ID), 0)
			}
		}
	}
	return counters
}

func readCounter(t *testing.T, path string, offset int64) uint64 {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var counter [8]byte
	if _, err := file.ReadAt(counter[:], offset); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(counter[:])
}
