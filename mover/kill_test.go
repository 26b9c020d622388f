package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/kopia"
	"github.com/blockmover/blockmover/mover/cli"
)

// envKills is how many processes TestKills kills.
const envKills = "BLOCKMOVER_KILLS"

const (
	mib = 1 << 20

	killPassword = "correct horse"
	killVolume   = "shop/db-0"

	// killSize has room for some checkpoints. It is mostly holes: a checkpoint counts
	// everything that is read.
	killSize     = 1283*mib + 1000
	killInterval = repository.MinCheckpointInterval
	// otherReads bounds what a process reads beside the device: the indexes of the repository
	// and the segments of the parent.
	otherReads = 16 * mib

	// patience is how many runs of one operation are killed at most.
	patience = 5
)

// TestKills kills the built program at random moments of backups and restores. Earlier images
// stay whole, and the next run continues. After kill -9 the program cannot clean up.
// chance to clean up.
func TestKills(t *testing.T) {
	kills := 10
	if text := os.Getenv(envKills); text != "" {
		var err error
		kills, err = strconv.Atoi(text)
		require.NoError(t, err)
	}
	if testing.Short() {
		kills = 4
	}
	k := newKiller(t)
	for round := 0; k.kills < kills; round++ {
		k.change()
		k.backup(round)
		if round%2 == 1 {
			k.restore()
		}
	}
	t.Logf("%d kills, %d backups that went on, %d MiB of %d MiB read again", k.kills, k.resumptions, k.again/mib, k.read/mib)
	require.Positive(t, k.resumptions, "backups that went on")
	left, err := os.ReadDir(k.temp())
	require.NoError(t, err)
	require.Empty(t, left, "a process that was killed leaves no temporary file")
}

// TestRefusals: the error is one line, the status is 1, and nothing is written. The tests of
// package cli have all errors.
func TestRefusals(t *testing.T) {
	binary, err := build()
	require.NoError(t, err)
	dir := t.TempDir()
	t.Setenv(cli.EnvPassword, killPassword)
	repo, disk := filepath.Join(dir, "repo"), filepath.Join(dir, "disk")
	require.NoError(t, os.WriteFile(disk, make([]byte, mib), 0o600))
	require.NoError(t, exec.Command(binary, "repo", "create", "--repo", repo).Run())
	backup := []string{"image", "backup", "--repo", repo, "--volume", killVolume, "--device", disk}
	for name, tc := range map[string]struct {
		in   string
		args []string
		want string
	}{
		"no command":     {"", []string{"image", "frobnicate"}, "unknown command"},
		"unknown option": {"", append(backup, "--fast"), "unknown flag: --fast"},
		"bad rate":       {"", append(backup, "--rate-limit", "50"), "want 64Ki or more"},
		"beyond the end": {`{"offset":1048576,"length":1}`, append(backup, "--changed", "-"), "outside the volume of 1048576 bytes"},
		"no repository":  {"", []string{"image", "list", "--repo", dir}, "repository not initialized"},
		"no such image":  {"", []string{"image", "restore", "--repo", repo, "--snapshot", "k1", "--device", disk}, "not found"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(binary, tc.args...)
			var out, messages bytes.Buffer
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(tc.in), &out, &messages
			var exit *exec.ExitError
			require.ErrorAs(t, cmd.Run(), &exit)
			require.Equal(t, 1, exit.ExitCode())
			require.Empty(t, out.String())
			require.Equal(t, 1, strings.Count(messages.String(), "\n"), messages.String())
			require.Contains(t, messages.String(), tc.want)
		})
	}
	left, err := exec.Command(binary, "image", "list", "--repo", repo).Output()
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(left), "\n"), "no image")
	data, err := os.ReadFile(disk)
	require.NoError(t, err)
	require.Equal(t, make([]byte, mib), data)
}

var buildDir string

// build builds the program, once.
var build = sync.OnceValues(func() (string, error) {
	binary := filepath.Join(buildDir, "blockmover")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	return binary, nil
})

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "mover")
	if err != nil {
		panic(err)
	}
	buildDir = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// content has the chunks of a volume that are not zero.
type content map[int64][]byte

// killer is a repository, a volume and a target in files.
type killer struct {
	t      *testing.T
	rnd    *rand.Rand
	dir    string
	binary string
	disk   *os.File
	model  content
	// changed has what changed since the newest image.
	changed []block.Extent
	images  []killedImage
	// took is the duration of a command that was not killed.
	took map[string]time.Duration

	kills, resumptions int
	// read is what backups have read. again is how much of it had been read before.
	read, again int64
}

type killedImage struct {
	id    repository.SnapshotID
	model content
}

func newKiller(t *testing.T) *killer {
	t.Helper()
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any number will do
	t.Logf("seed %d", seed)
	k := &killer{
		t: t, rnd: rand.New(rand.NewPCG(seed, 1)), dir: t.TempDir(), model: content{}, took: map[string]time.Duration{},
	}
	var err error
	k.binary, err = build()
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(k.temp(), 0o700))
	k.disk, err = os.Create(filepath.Join(k.dir, "disk"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, k.disk.Close()) })
	require.NoError(t, k.disk.Truncate(killSize))
	k.must("repo", "create", "--repo", k.repo())
	const part = 128 * mib // each of them has data
	for at := int64(0); at < killSize; at += part {
		for range 3 {
			k.write(block.Extent{Offset: at + k.rnd.Int64N(min(part, killSize-at)), Length: mib})
		}
	}
	return k
}

func (k *killer) repo() string { return filepath.Join(k.dir, "repo") }

// temp is the program's directory for temporary files.
func (k *killer) temp() string { return filepath.Join(k.dir, "tmp") }

// write puts random bytes into the volume, up to its end.
func (k *killer) write(e block.Extent) {
	k.t.Helper()
	e.Length = min(e.Length, killSize-e.Offset)
	data := make([]byte, e.Length)
	for i := range data {
		data[i] = byte(k.rnd.Uint32())
	}
	_, err := k.disk.WriteAt(data, e.Offset)
	require.NoError(k.t, err)
	k.changed = append(k.changed, e)
	for len(data) > 0 {
		c, within := e.Offset/mib, e.Offset%mib
		chunk := make([]byte, mib)
		copy(chunk, k.model[c])
		n := copy(chunk[within:], data)
		k.model[c] = chunk
		data = data[n:]
		e.Offset += int64(n)
	}
}

func (k *killer) change() {
	for range 1 + k.rnd.IntN(8) {
		k.write(block.Extent{Offset: k.rnd.Int64N(killSize), Length: 1 + k.rnd.Int64N(256<<10)})
	}
}

// changes returns the file for --changed: exact, or far too much.
func (k *killer) changes() string {
	k.t.Helper()
	slices.SortFunc(k.changed, func(a, b block.Extent) int { return int(a.Offset - b.Offset) })
	var all []block.Extent
	for _, e := range k.changed {
		if n := len(all); n > 0 && e.Offset <= all[n-1].End() {
			all[n-1].Length = max(all[n-1].End(), e.End()) - all[n-1].Offset
			continue
		}
		all = append(all, e)
	}
	if k.rnd.IntN(3) > 0 {
		all = []block.Extent{{Length: killSize}}
	}
	var text strings.Builder
	encoder := json.NewEncoder(&text)
	for _, e := range all {
		require.NoError(k.t, encoder.Encode(e))
	}
	path := filepath.Join(k.dir, "changed")
	require.NoError(k.t, os.WriteFile(path, []byte(text.String()), 0o600))
	return path
}

// backup makes an image, in as many runs as it takes.
func (k *killer) backup(round int) {
	k.t.Helper()
	kind := "full"
	args := []string{
		"image", "backup", "--repo", k.repo(), "--volume", killVolume, "--device", k.disk.Name(), "--json",
		"--operation", fmt.Sprintf("round-%d", round), "--checkpoint-interval", strconv.Itoa(killInterval),
	}
	if len(k.images) > 0 && k.rnd.IntN(3) > 0 {
		kind = "incremental"
		args = append(args, "--changed", k.changes(), "--parent", string(k.images[len(k.images)-1].id))
	}
	var read int64
	killed := 0
	for {
		at := k.moment(kind, killed)
		if round == 0 && killed == 0 {
			at = moment{read: killSize/2 + k.rnd.Int64N(killSize/3)} // late enough to leave a checkpoint
		}
		run := k.run(at, args...)
		read += run.read
		if run.killed {
			killed++
			k.check()
			continue
		}
		var s struct {
			SnapshotID                          repository.SnapshotID
			VolumeSize, ResumedBytes, BytesRead int64
		}
		require.NoError(k.t, json.Unmarshal(run.out, &s), "%s", run.out)
		require.EqualValues(k.t, killSize, s.VolumeSize)
		if kind == "full" && s.ResumedBytes < killSize {
			require.EqualValues(k.t, killSize, s.ResumedBytes+s.BytesRead)
		}
		if s.ResumedBytes > 0 {
			k.resumptions++
		}
		if killed == 0 {
			k.took[kind] = run.took
		}
		k.images = append(k.images, killedImage{s.SnapshotID, maps.Clone(k.model)})
		break
	}
	// What a process reads of the device is what it backs up.
	again := read - killSize
	require.LessOrEqual(k.t, again, int64(killed)*killInterval+int64(killed+1)*otherReads, "%s, %d kills", kind, killed)
	k.read += read
	k.again += max(again, 0)
	k.changed = nil
	if len(k.images) > 3 {
		k.must("image", "delete", "--repo", k.repo(), "--snapshot", string(k.images[0].id))
		k.images = k.images[1:]
	}
	k.check()
}

// restore writes an image onto a target that is full of old bytes.
func (k *killer) restore() {
	k.t.Helper()
	target, err := os.Create(filepath.Join(k.dir, "target"))
	require.NoError(k.t, err)
	defer target.Close()
	const size = killSize + mib
	require.NoError(k.t, target.Truncate(size))
	old := bytes.Repeat([]byte{0xff}, mib)
	for range 50 {
		_, err := target.WriteAt(old, k.rnd.Int64N(size-mib))
		require.NoError(k.t, err)
	}
	image := k.images[k.rnd.IntN(len(k.images))]
	args := []string{"image", "restore", "--repo", k.repo(), "--snapshot", string(image.id), "--device", target.Name()}
	var written int64
	for killed := 0; ; killed++ {
		run := k.run(k.moment("restore", killed), args...)
		written += run.written
		if run.killed {
			args = append(args[:8:8], "--resume")
			continue
		}
		if killed == 0 {
			k.took["restore"] = run.took
		}
		break
	}
	k.requireEqual(target, size, image.model)
	// No run writes what an earlier one has written.
	require.LessOrEqual(k.t, written, int64(len(image.model)+1)*mib)
	k.check()
}

// requireEqual compares a file with a model.
func (k *killer) requireEqual(f io.ReaderAt, size int64, model content) {
	k.t.Helper()
	buf, zero := make([]byte, mib), make([]byte, mib)
	for c := int64(0); c*mib < size; c++ {
		n := min(mib, size-c*mib)
		_, err := f.ReadAt(buf[:n], c*mib)
		require.NoError(k.t, err)
		want := zero
		if model[c] != nil {
			want = model[c]
		}
		require.True(k.t, bytes.Equal(want[:n], buf[:n]), "chunk %d", c)
	}
}

// check reads all images that must exist.
func (k *killer) check() {
	k.t.Helper()
	store, err := kopia.OpenFilesystem(k.t.Context(), k.repo(), killPassword)
	require.NoError(k.t, err)
	defer func() { require.NoError(k.t, store.Close(context.Background())) }()
	list, err := store.List(k.t.Context(), repository.VolumeKey{Namespace: "shop", PVC: "db-0"})
	require.NoError(k.t, err)
	// A killed process may have saved an image without reporting it.
	require.Contains(k.t, []int{len(k.images), len(k.images) + 1}, len(list))
	for _, image := range k.images {
		r, err := store.OpenReader(k.t.Context(), image.id)
		require.NoError(k.t, err)
		require.EqualValues(k.t, killSize, r.Meta().Size)
		buf := make([]byte, mib)
		for c := int64(0); c*mib < killSize; c++ {
			n := min(mib, killSize-c*mib)
			if image.model[c] == nil {
				for off := c * mib; off < c*mib+n; off += r.Meta().ChunkSize {
					zero, err := r.IsZero(k.t.Context(), off/r.Meta().ChunkSize)
					require.NoError(k.t, err)
					require.True(k.t, zero, "image %s at %d", image.id, off)
				}
				continue
			}
			got, err := r.ReadAt(buf[:n], c*mib)
			require.EqualValues(k.t, n, got, err)
			require.True(k.t, bytes.Equal(image.model[c][:n], buf[:n]), "image %s, chunk %d", image.id, c)
		}
		require.NoError(k.t, r.Close())
	}
}

// moment says when to kill: after some time, or after some bytes were read or written. The
// zero value is never.
type moment struct {
	after       time.Duration
	read, write int64
}

// moment chooses one for a run of a command. killed is how many runs were killed before.
func (k *killer) moment(kind string, killed int) moment {
	took := max(k.took[kind], time.Second)
	switch {
	case killed == patience:
		return moment{}
	case k.rnd.IntN(3) == 0:
		return moment{after: time.Duration(k.rnd.Int64N(int64(took) * 5 / 4))}
	case kind == "restore":
		return moment{write: 1 + k.rnd.Int64N(40*mib)}
	}
	return moment{read: 1 + k.rnd.Int64N(killSize)}
}

// reached reports whether a process has done so much since it started.
func (m moment) reached(pid int, start time.Time) bool {
	switch {
	case m.after > 0:
		return time.Since(start) >= m.after
	case m.read > 0:
		return done(pid, "rchar") >= m.read
	case m.write > 0:
		return done(pid, "wchar") >= m.write
	}
	return false
}

// done returns what /proc/PID/io counts. A dead process has it until it is waited for.
func done(pid int, field string) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, field+": "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return n
		}
	}
	return 0
}

// killedRun is one process.
type killedRun struct {
	killed bool
	out    []byte
	took   time.Duration
	// read and written are bytes of all files.
	read, written int64
}

func (k *killer) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(k.t.Context(), k.binary, args...)
	cmd.Env = append(os.Environ(), cli.EnvPassword+"="+killPassword, "TMPDIR="+k.temp())
	return cmd
}

// run runs the program and kills it at a moment, unless it ends before.
func (k *killer) run(at moment, args ...string) killedRun {
	k.t.Helper()
	cmd := k.command(args...)
	var out, messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &messages
	start := time.Now()
	require.NoError(k.t, cmd.Start())
	pid := cmd.Process.Pid
	dead := make(chan error, 1)
	go func() {
		// The process must stay a zombie: what it has read is asked for afterwards.
		for {
			err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
			if !errors.Is(err, unix.EINTR) {
				dead <- err
				return
			}
		}
	}()
	for alive := true; alive; {
		select {
		case err := <-dead:
			require.NoError(k.t, err)
			alive = false
		case <-time.After(time.Millisecond):
			if at.reached(pid, start) {
				require.NoError(k.t, cmd.Process.Kill())
				require.NoError(k.t, <-dead)
				alive = false
			}
		}
	}
	r := killedRun{took: time.Since(start), read: done(pid, "rchar"), written: done(pid, "wchar")}
	require.Positive(k.t, r.read)
	err := cmd.Wait()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	require.True(k.t, ok)
	if r.killed = status.Signaled() && status.Signal() == syscall.SIGKILL; r.killed {
		k.kills++
		return r
	}
	require.NoError(k.t, err, "%v: %s", args, messages.String())
	r.out = out.Bytes()
	return r
}

func (k *killer) must(args ...string) {
	k.t.Helper()
	out, err := k.command(args...).CombinedOutput()
	require.NoError(k.t, err, string(out))
}
