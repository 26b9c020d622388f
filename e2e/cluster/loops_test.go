package cluster

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestOwnedLoops(t *testing.T) {
	const state = "/var/tmp/blockmover/a"
	const devtmpfs, disk = 6, 100
	onLoop := func(n uint32) uint64 { return unix.Mkdev(loopMajor, n) }
	nodes := map[[2]uint64]int{
		{devtmpfs, 1000}: 0, {devtmpfs, 1001}: 1, {devtmpfs, 1002}: 2, {devtmpfs, 1003}: 3,
		{devtmpfs, 1004}: 4, {devtmpfs, 1005}: 5, {devtmpfs, 1006}: 6,
	}
	all := []loop{
		{2, "/", devtmpfs, 1001},                              // the kubelet's, on loop1
		{1, "/volumes/x.img", onLoop(0), 7},                   // a volume, in the pool on loop0
		{0, state + "/csi/pool.img (deleted)", disk, 5},       // our pool
		{3, "/var/tmp/blockmover/ab/csi/pool.img", disk, 6},   // another cluster's
		{4, "/", devtmpfs, 1003},                              // its kubelet's
		{5, "/home/someone/disk.img", disk, 1001},             // same inode number, other file system
		{6, "/volumes/y.img", unix.Mkdev(loopMajor+1, 0), 99}, // not a loop device below
	}
	var got []int
	for _, l := range ownedLoops(all, state, nodes) {
		got = append(got, l.number)
	}
	if len(got) != 3 || got[0] != 2 || got[1] != 1 || got[2] != 0 {
		t.Errorf("got %v, want [2 1 0]: ours alone, top first", got)
	}
	if got := ownedLoops(all, "/var/tmp/blockmover/none", nodes); len(got) != 0 {
		t.Errorf("a cluster without loops owns %v", got)
	}
}
