package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/mover/cli"
)

const (
	mib    = 1 << 20
	volume = "shop/db-0"
)

// workbench is a repository and a volume in files.
type workbench struct {
	t    *testing.T
	dir  string
	repo string
	disk string
	data []byte
}

// result of one command.
type result struct {
	out, messages string
	err           error
}

// newWorkbench makes a repository, and a volume of random data and zeros whose size is not a
// multiple of a chunk.
func newWorkbench(t *testing.T) *workbench {
	t.Helper()
	t.Setenv(cli.EnvPassword, "secret")
	dir := t.TempDir()
	b := &workbench{t: t, dir: dir, repo: filepath.Join(dir, "repo"), disk: filepath.Join(dir, "disk")}
	b.must("", "repo", "create")
	b.data = make([]byte, 9*mib+4096)
	b.random(0, 5*mib)
	b.random(8*mib, len(b.data)-8*mib)
	b.write()
	return b
}

func (b *workbench) random(offset, length int) {
	rnd := rand.NewChaCha8([32]byte{byte(offset), byte(offset >> 8), byte(offset >> 16), byte(length)})
	_, _ = rnd.Read(b.data[offset : offset+length])
}

func (b *workbench) write() {
	b.t.Helper()
	require.NoError(b.t, os.WriteFile(b.disk, b.data, 0o600))
}

// run runs a command with --repo.
func (b *workbench) run(in string, args ...string) result {
	b.t.Helper()
	return b.command(in, append(args, "--repo", b.repo)...)
}

func (b *workbench) command(in string, args ...string) result {
	b.t.Helper()
	root := &cobra.Command{Use: "blockmover", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(cli.NewCommands()...)
	var out, messages bytes.Buffer
	root.SetArgs(args)
	root.SetIn(strings.NewReader(in))
	root.SetOut(&out)
	root.SetErr(&messages)
	err := root.ExecuteContext(b.t.Context())
	return result{out.String(), messages.String(), err}
}

func (b *workbench) must(in string, args ...string) result {
	b.t.Helper()
	r := b.run(in, args...)
	require.NoError(b.t, r.err, "%v: %s", args, r.messages)
	return r
}

// summary has the fields that --json promises.
type summary struct {
	SnapshotID, Kind, Reason, Parent          string
	VolumeSize, ResumedBytes                  int64
	BytesRead, BytesHashed                    int64
	BytesUploaded, MetadataBytes              int64
	ChunksWritten, ChunksInherited, ZeroBytes int64
	Seconds, CPUSeconds                       float64
	PeakRSS                                   int64
}

func (b *workbench) backup(in string, args ...string) summary {
	b.t.Helper()
	r := b.must(in, append([]string{"image", "backup", "--volume", volume, "--device", b.disk, "--json"}, args...)...)
	var s summary
	d := json.NewDecoder(strings.NewReader(r.out))
	d.DisallowUnknownFields()
	require.NoError(b.t, d.Decode(&s), r.out)
	require.Equal(b.t, int64(len(b.data)), s.VolumeSize)
	require.Equal(b.t, s.BytesRead-s.ZeroBytes, s.BytesHashed)
	require.Positive(b.t, s.Seconds)
	require.Positive(b.t, s.CPUSeconds)
	require.Positive(b.t, s.PeakRSS)
	return s
}

// restored returns what a restore makes of a file with other data.
func (b *workbench) restored(id string, extra int, args ...string) []byte {
	b.t.Helper()
	target := filepath.Join(b.dir, "target")
	require.NoError(b.t, os.WriteFile(target, bytes.Repeat([]byte{0xff}, len(b.data)+extra), 0o600))
	b.must("", append([]string{"image", "restore", "--snapshot", id, "--device", target}, args...)...)
	got, err := os.ReadFile(target)
	require.NoError(b.t, err)
	return got
}

// files lists the files of the repository that kopia names with a prefix: p for packs of
// data, q for packs of metadata. kopia's log has neither.
func (b *workbench) files(prefix string) []string {
	b.t.Helper()
	var files []string
	require.NoError(b.t, filepath.WalkDir(b.repo, func(path string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(b.repo, path)
		if err == nil && d.Type().IsRegular() && strings.HasPrefix(name, prefix) && !strings.HasPrefix(name, "_") {
			files = append(files, path)
		}
		return err
	}))
	require.NotEmpty(b.t, files)
	return files
}

func line(offset, length int) string {
	return fmt.Sprintf("{\"offset\":%d,\"length\":%d}\n", offset, length)
}

// TestEmptyLists: an empty list says that there are no ranges. Nothing is read.
func TestEmptyLists(t *testing.T) {
	b := newWorkbench(t)
	clear(b.data)
	b.write()
	full := b.backup("", "--allocated", "-")
	require.Equal(t, "NoParent", full.Reason)
	require.Zero(t, full.BytesRead)
	require.Equal(t, b.data, b.restored(full.SnapshotID, 0))
	increment := b.backup("", "--changed", "-")
	require.Equal(t, "Incremental", increment.Kind)
	require.Zero(t, increment.BytesRead)
}

func TestLifeOfImages(t *testing.T) {
	b := newWorkbench(t)
	allocated := filepath.Join(b.dir, "allocated")
	require.NoError(t, os.WriteFile(allocated, []byte(line(0, 5*mib)+line(8*mib, mib+4096)), 0o600))

	full := b.backup("", "--allocated", allocated)
	require.Equal(t, "Full", full.Kind)
	require.Equal(t, "NoParent", full.Reason)
	require.Empty(t, full.Parent)
	require.Equal(t, int64(6*mib+4096), full.BytesRead)
	require.Positive(t, full.BytesUploaded)
	first := bytes.Clone(b.data)

	// An increment of three changes. One of them zeroes a chunk.
	b.random(mib+8192, 4096)
	b.random(6*mib, 4096)
	clear(b.data[4*mib : 5*mib])
	b.write()
	changed := line(mib+8192, 4096) + line(4*mib, mib) + line(6*mib, 4096)
	inc := b.backup(changed, "--changed", "-")
	require.Equal(t, "Incremental", inc.Kind)
	require.Empty(t, inc.Reason)
	require.Equal(t, full.SnapshotID, inc.Parent)
	require.Less(t, inc.BytesRead, full.BytesRead)
	require.Less(t, inc.BytesUploaded, int64(3*mib))
	require.Positive(t, inc.ChunksInherited)

	require.Equal(t, first, b.restored(full.SnapshotID, 0, "--verify"))
	require.Equal(t, append(bytes.Clone(b.data), make([]byte, 12345)...), b.restored(inc.SnapshotID, 12345))
	again := b.must("", "image", "restore", "--snapshot", inc.SnapshotID, "--device", filepath.Join(b.dir, "target"), "--resume", "--verify")
	require.Contains(t, again.out, "wrote 0 B, found ")

	list := b.must("", "image", "list", "--volume", volume).out
	require.Equal(t, 3, strings.Count(list, "\n"))
	require.Less(t, strings.Index(list, inc.SnapshotID), strings.Index(list, full.SnapshotID), "newest first")

	diff := b.must("", "image", "diff", full.SnapshotID, inc.SnapshotID).out
	require.Equal(t, changed, diff)
	require.Empty(t, b.must("", "image", "diff", inc.SnapshotID, inc.SnapshotID).out)

	require.Equal(t, 2, strings.Count(b.must("", "image", "verify", "--volume", volume).out, "  ok, "))

	// The increment is whole without its parent.
	b.must("", "image", "delete", "--snapshot", full.SnapshotID)
	require.NotContains(t, b.must("", "image", "list", "--volume", volume).out, full.SnapshotID+"  ")
	require.Equal(t, b.data, b.restored(inc.SnapshotID, 0))

	gone := b.run("", "image", "delete", "--snapshot", full.SnapshotID)
	require.ErrorContains(t, gone.err, full.SnapshotID)
	b.must("", "image", "delete", "--snapshot", full.SnapshotID, "--force")
}

func TestAllVolumes(t *testing.T) {
	b := newWorkbench(t)
	empty := b.run("", "image", "verify")
	require.ErrorContains(t, empty.err, "no images")
	require.Equal(t, 1, strings.Count(b.must("", "image", "list").out, "\n"))

	ids := []string{b.backup("").SnapshotID, b.backup("").SnapshotID}
	r := b.must("", "image", "backup", "--volume", "shop/db-1", "--device", b.disk, "--json")
	var other summary
	require.NoError(t, json.Unmarshal([]byte(r.out), &other))

	lines := strings.Split(strings.TrimSpace(b.must("", "image", "list").out), "\n")
	require.Len(t, lines, 4)
	for i, want := range [][]string{{"SNAPSHOT", "VOLUME"}, {ids[1], volume}, {ids[0], volume}, {other.SnapshotID, "shop/db-1"}} {
		require.Equal(t, want, strings.Fields(lines[i])[:2])
	}
	require.Equal(t, 2, strings.Count(b.must("", "image", "list", "--volume", "shop/db-1").out, "\n"))

	verified := b.must("", "image", "verify").out
	require.Equal(t, 3, strings.Count(verified, "  ok, "))
	for _, args := range [][]string{
		{"image", "list", "--volume", ""}, {"image", "verify", "--volume", ""}, {"image", "verify", "--snapshot", ""},
	} {
		require.Error(t, b.run("", args...).err, "%v: empty is not all", args)
	}
}

// TestDiffReadsWhatDiffers: what two images share is not read, so it may be damaged.
func TestDiffReadsWhatDiffers(t *testing.T) {
	b := newWorkbench(t)
	first := b.backup("").SnapshotID
	second := b.backup("").SnapshotID
	b.damage()
	require.Error(t, b.run("", "image", "verify", "--snapshot", first).err)
	require.Empty(t, b.must("", "image", "diff", first, second).out)
}

func TestOperationIsRepeated(t *testing.T) {
	b := newWorkbench(t)
	first := b.backup("", "--operation", "nightly-1")
	require.Zero(t, first.ResumedBytes)
	again := b.backup("", "--operation", "nightly-1")
	require.Equal(t, first.SnapshotID, again.SnapshotID)
	require.Equal(t, first.Kind, again.Kind)
	require.Zero(t, again.BytesRead)
	require.Equal(t, int64(len(b.data)), again.ResumedBytes)

	next := b.backup("", "--operation", "nightly-2", "--changed", "-")
	require.Equal(t, first.SnapshotID, next.Parent)
	repeated := b.backup("", "--operation", "nightly-2", "--changed", "-")
	require.Equal(t, next.SnapshotID, repeated.SnapshotID)
	require.Equal(t, next.Parent, repeated.Parent)

	b.data = b.data[:mib]
	b.write()
	r := b.run("", "image", "backup", "--volume", volume, "--device", b.disk, "--operation", "nightly-2")
	require.ErrorContains(t, r.err, "of 9441280 bytes, and the device has 1048576")
}

func TestFullWithReason(t *testing.T) {
	b := newWorkbench(t)
	first := b.backup("", "--parent", "none")
	require.Equal(t, "ForcedFull", first.Reason)
	require.Equal(t, int64(len(b.data)), first.BytesRead)

	// Without a list of changes everything is read, and little is uploaded.
	b.random(0, 4096)
	b.write()
	second := b.backup("")
	require.Equal(t, "Full", second.Kind)
	require.Equal(t, "CBTUnavailable", second.Reason)
	require.Equal(t, int64(len(b.data)), second.BytesRead)
	require.LessOrEqual(t, second.BytesUploaded, int64(2*mib))
	require.Equal(t, b.data, b.restored(second.SnapshotID, 0))
}

func TestGrowAndShrink(t *testing.T) {
	b := newWorkbench(t)
	b.backup("")
	whole := bytes.Clone(b.data)

	b.data = append(b.data, make([]byte, 3*mib)...)
	b.random(10*mib, mib)
	b.write()
	grown := b.backup(line(10*mib, mib), "--changed", "-")
	require.Equal(t, "Incremental", grown.Kind)
	require.Equal(t, b.data, b.restored(grown.SnapshotID, 0))

	b.data = whole[:7*mib+512]
	b.write()
	shrunk := b.backup("", "--changed", "-")
	require.Equal(t, "Incremental", shrunk.Kind)
	require.Equal(t, b.data, b.restored(shrunk.SnapshotID, 0))

	diff := b.run("", "image", "diff", shrunk.SnapshotID, grown.SnapshotID)
	require.NoError(t, diff.err)
	require.Equal(t, line(7*mib+512, 5*mib+4096-512), diff.out)
	require.Contains(t, diff.messages, "the first image has")
}

// TestNewestParentIsDamaged: with an older parent, the image would lack what changed between
// the two.
func TestNewestParentIsDamaged(t *testing.T) {
	b := newWorkbench(t)
	first := b.backup("")
	before := b.files("p")
	b.random(0, 4096)
	b.write()
	newest := b.backup(line(0, 4096), "--changed", "-")
	require.Equal(t, first.SnapshotID, newest.Parent)
	for _, pack := range b.files("p") {
		if !slices.Contains(before, pack) {
			require.NoError(t, os.Remove(pack))
		}
	}
	require.Contains(t, b.must("", "image", "list", "--volume", volume).out, "damaged: ")

	b.random(2*mib, 4096)
	b.write()
	next := b.backup(line(2*mib, 4096), "--changed", "-")
	require.Equal(t, "Full", next.Kind)
	require.Equal(t, "ParentDamaged", next.Reason)
	require.Equal(t, b.data, b.restored(next.SnapshotID, 0))

	verified := b.run("", "image", "verify", "--volume", volume)
	require.ErrorContains(t, verified.err, "1 of 3 images are damaged")
	require.ErrorContains(t, b.run("", "image", "delete", "--snapshot", newest.SnapshotID).err, "--force")
	b.must("", "image", "delete", "--snapshot", newest.SnapshotID, "--force")
	b.must("", "image", "verify", "--volume", volume)
}

func TestVerifyFindsDamage(t *testing.T) {
	b := newWorkbench(t)
	id := b.backup("").SnapshotID
	b.must("", "image", "verify", "--snapshot", id)

	b.damage()
	r := b.run("", "image", "verify", "--snapshot", id)
	require.ErrorContains(t, r.err, "1 of 1 images are damaged")
	require.Contains(t, r.out, id+"  "+volume+"  damaged in [")
	require.Contains(t, r.out, "damaged: 64 KiB of 9.0 MiB cannot be read, in 1 ranges")

	target := filepath.Join(b.dir, "target")
	require.NoError(t, os.WriteFile(target, make([]byte, len(b.data)), 0o600))
	restore := b.run("", "image", "restore", "--snapshot", id, "--device", target)
	require.ErrorContains(t, restore.err, "is incomplete: do not use it")
}

// damage flips a bit in one chunk of data.
func (b *workbench) damage() {
	b.t.Helper()
	packs := b.files("p")
	slices.SortFunc(packs, func(x, y string) int { return int(size(b.t, y) - size(b.t, x)) })
	text, err := os.ReadFile(packs[0])
	require.NoError(b.t, err)
	text[5*mib/2] ^= 1 // in a chunk, whatever the order of the contents in the pack
	require.NoError(b.t, os.WriteFile(packs[0], text, 0o600))
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	return info.Size()
}

// TestBadInput: the error is one line, and nothing is written.
func TestBadInput(t *testing.T) {
	b := newWorkbench(t)
	id := b.backup("").SnapshotID
	other := b.must("", "image", "backup", "--volume", "shop/other", "--device", b.disk, "--json").out
	var s summary
	require.NoError(t, json.Unmarshal([]byte(other), &s))
	wrong := filepath.Join(b.dir, "password")
	require.NoError(t, os.WriteFile(wrong, []byte("guess\n"), 0o600))
	small := filepath.Join(b.dir, "small")
	require.NoError(t, os.WriteFile(small, []byte("precious"), 0o600))
	before := b.files("")

	backup := []string{"image", "backup", "--volume", volume, "--device", b.disk}
	end := len(b.data)
	for _, c := range []struct {
		name string
		in   string
		args []string
		want string
	}{
		{"range beyond the device", line(end-1, 2), append(backup, "--changed", "-"), "line 1: extent [9441279,9441281) is outside the volume of 9441280 bytes"},
		{"ranges out of order", line(4096, 4096) + line(0, 4096), append(backup, "--changed", "-"), "line 2: range [0,4096) begins before"},
		{"no JSON", "offset=1", append(backup, "--allocated", "-"), "read --allocated: line 1"},
		{"no such file", "", append(backup, "--allocated", filepath.Join(b.dir, "none")), "no such file"},
		{"both from standard input", "", append(backup, "--changed", "-", "--allocated", "-"), "cannot both"},
		{"changes without a parent", "", append(backup, "--changed", "-", "--parent", "none"), "--parent none"},
		{"parent of another volume", "", append(backup, "--parent", s.SnapshotID), "is of volume shop/other, not of shop/db-0"},
		{"no such parent", "", append(backup, "--parent", "0123456789abcdef0123456789abcdef"), "use parent"},
		{"empty parent", "", append(backup, "--parent", ""), "--parent is empty"},
		{"no such device", "", []string{"image", "backup", "--volume", volume, "--device", filepath.Join(b.dir, "none")}, "no such file"},
		{"directory as a device", "", []string{"image", "backup", "--volume", volume, "--device", b.dir}, "neither a block device nor a regular file"},
		{"no namespace", "", []string{"image", "backup", "--volume", "db-0", "--device", b.disk}, "is not NAMESPACE/PVC"},
		{"climbing volume", "", []string{"image", "backup", "--volume", "shop/..", "--device", b.disk}, "is not NAMESPACE/PVC"},
		{"interval too small", "", append(backup, "--checkpoint-interval", "383Mi"), "want 384Mi or more"},
		{"compression", "", append(backup, "--compression", "gzip"), `--compression is "gzip": want s2, zstd or none`},
		{"interval without a number", "", append(backup, "--checkpoint-interval", "much"), "want a quantity of bytes"},
		{"no name of an operation", "", append(backup, "--operation", ""), `--operation "": want`},
		{"name of an operation", "", append(backup, "--operation", "a b"), `--operation "a b": want`},
		{"rate too low", "", append(backup, "--rate-limit", "50"), "want 64Ki or more"},
		{"negative rate", "", append(backup, "--rate-limit", "-1M"), "want 64Ki or more"},
		{"rate of a restore", "", []string{"image", "restore", "--snapshot", id, "--device", small, "--rate-limit", "fast"}, "want a quantity of bytes"},
		{"wrong password", "", append(backup, "--password-file", wrong), "invalid repository password"},
		{"target too small", "", []string{"image", "restore", "--snapshot", id, "--device", small}, "smaller than the volume: 8 bytes, want 9441280"},
		{"no such image", "", []string{"image", "restore", "--snapshot", "0123456789abcdef0123456789abcdef", "--device", small}, "not found"},
		{"delete what is not there", "", []string{"image", "delete", "--snapshot", "0123456789abcdef0123456789abcdef"}, "not found"},
		{"delete without an ID", "", []string{"image", "delete", "--snapshot", ""}, "not found"},
		{"diff with nothing", "", []string{"image", "diff", id, "0123456789abcdef0123456789abcdef"}, "not found"},
		{"nothing to verify", "", []string{"image", "verify", "--volume", "shop/none"}, "has no images"},
		{"verify what is not there", "", []string{"image", "verify", "--snapshot", "0123456789abcdef0123456789abcdef"}, "not found"},
		{"repository is there", "", []string{"repo", "create"}, "already"},
		{"credentials for a directory", "", []string{"image", "list", "--credentials-file", small}, "--credentials-file is for object stores"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := b.run(c.in, c.args...)
			require.ErrorContains(t, r.err, c.want)
			require.NotContains(t, cli.OneLine(r.err), "\n")
			require.Empty(t, r.out)
			require.Equal(t, before, b.files(""), "nothing is written")
		})
	}
	precious, err := os.ReadFile(small)
	require.NoError(t, err)
	require.Equal(t, "precious", string(precious))
}

// TestObjectStore: only reading commands take the address of an object store.
func TestObjectStore(t *testing.T) {
	t.Setenv(cli.EnvPassword, "p")
	for _, tc := range []struct{ want, args string }{
		{"works with a repository in a directory only", "repo create --repo s3://velero/kopia/shop"},
		{"works with a repository in a directory only", "image delete --snapshot 1 --repo s3://velero/kopia/shop"},
		{"works with a repository in a directory only", "image backup --volume shop/db --device /dev/null --repo gs://velero/kopia/shop"},
		{"want [PREFIX/]kopia/NAMESPACE", "image list --repo s3://velero/shop"},
		{"read credentials: open /none", "image list --repo s3://velero/kopia/shop --credentials-file /none"},
		{"stat /none: no such file", "image list --repo file:///none"},
	} {
		root := &cobra.Command{Use: "blockmover", SilenceErrors: true, SilenceUsage: true}
		root.AddCommand(cli.NewCommands()...)
		root.SetArgs(strings.Fields(tc.args))
		require.ErrorContains(t, root.ExecuteContext(t.Context()), tc.want, tc.args)
	}
	_, err := os.Stat("s3:")
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestBesideStockKopia: the environment of stock kopia has no effect.
func TestBesideStockKopia(t *testing.T) {
	b := newWorkbench(t)
	b.backup("")
	cache := filepath.Join(b.dir, "cache")
	t.Setenv("KOPIA_CACHE_DIRECTORY", cache)
	b.must("", "image", "verify", "--volume", volume)
	require.NoDirExists(t, cache)
}

func TestBadRepository(t *testing.T) {
	b := newWorkbench(t)
	require.ErrorContains(t, b.command("", "image", "list", "--volume", volume, "--repo", filepath.Join(b.dir, "none")).err, "open repository")
	require.ErrorContains(t, b.command("", "image", "list", "--volume", volume).err, "repo")
	require.ErrorContains(t, b.command("", "image", "list", "--repo", t.TempDir()).err, "repository not initialized")

	t.Setenv(cli.EnvPassword, "")
	require.ErrorContains(t, b.run("", "image", "list", "--volume", volume).err, "no password")
	file := filepath.Join(b.dir, "password")
	require.NoError(t, os.WriteFile(file, []byte("secret\n"), 0o600))
	b.must("", "image", "list", "--volume", volume, "--password-file", file)

	require.NoError(t, os.WriteFile(filepath.Join(b.repo, "kopia.repository.f"), []byte("no repository"), 0o600))
	require.ErrorContains(t, b.run("", "image", "list", "--volume", volume, "--password-file", file).err, "open repository")
}

// TestDamagedRepository: if the index of the repository is damaged, every command says so,
// and none writes anything.
func TestDamagedRepository(t *testing.T) {
	b := newWorkbench(t)
	id := b.backup("").SnapshotID
	target := filepath.Join(b.dir, "target")
	require.NoError(t, os.WriteFile(target, bytes.Repeat([]byte{0xff}, len(b.data)), 0o600))
	healthy := b.repo
	for prefix, what := range map[string]string{"kopia.repository": "format", "x": "index", "q": "manifests"} {
		t.Run(what, func(t *testing.T) {
			b.repo = filepath.Join(t.TempDir(), "repo")
			require.NoError(t, os.CopyFS(b.repo, os.DirFS(healthy)))
			for _, file := range b.files(prefix) {
				require.NoError(t, os.Truncate(file, 1))
			}
			before := b.files("")
			for _, args := range [][]string{
				{"backup", "--volume", volume, "--device", b.disk},
				{"restore", "--snapshot", id, "--device", target},
				{"list"},
				{"verify"},
				{"delete", "--snapshot", id},
				{"diff", id, id},
			} {
				r := b.run("", append([]string{"image"}, args...)...)
				require.Error(t, r.err, args)
				require.NotContains(t, cli.OneLine(r.err), "\n")
				require.Equal(t, before, b.files(""), "nothing is written")
			}
		})
	}
	got, err := os.ReadFile(target)
	require.NoError(t, err)
	require.Equal(t, bytes.Repeat([]byte{0xff}, len(b.data)), got)
}

func TestInterrupted(t *testing.T) {
	b := newWorkbench(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	before := b.files("")
	root := &cobra.Command{Use: "blockmover", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(cli.NewCommands()...)
	root.SetArgs([]string{"image", "backup", "--volume", volume, "--device", b.disk, "--repo", b.repo})
	root.SetErr(io.Discard)
	require.EqualError(t, root.ExecuteContext(ctx), "backup: interrupted")
	require.Equal(t, before, b.files(""))
}
