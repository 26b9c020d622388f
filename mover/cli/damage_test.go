package cli_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/repository"
	"github.com/blockmover/blockmover/internal/repository/kopia"
	"github.com/blockmover/blockmover/internal/restore"
	"github.com/blockmover/blockmover/mover/cli"
)

// envDamages is how many damages at random positions TestDamage tries, beside those that it always tries. envSeed chooses them, and the
// data; kopia's names of packs stay random.
const (
	envDamages = "BLOCKMOVER_DAMAGES"
	envSeed    = "BLOCKMOVER_DAMAGES_SEED"
)

func numberOf(t *testing.T, env string, number int) int {
	t.Helper()
	if text := os.Getenv(env); text != "" {
		var err error
		number, err = strconv.Atoi(text)
		require.NoError(t, err)
	}
	return number
}

// A museum has a repository with images of several volumes, and what each of them held.
type museum struct {
	*workbench
	healthy string
	images  []exhibit
}

type exhibit struct {
	id, volume string
	data       []byte
	// written are the files that the backup wrote, relative to the repository, oldest first.
	written []string
	sizes   map[string]int64
}

// newMuseum backs up three volumes, each in full and in increments. Two of them share most of their contents.
func newMuseum(t *testing.T, rnd *rand.Rand) *museum {
	t.Helper()
	m := &museum{workbench: newWorkbench(t)}
	m.healthy = m.repo
	var common []byte
	for n, volume := range []string{"shop/db-0", "shop/db-1", "other/files"} {
		m.data = make([]byte, mib+mib/2+4096)
		fill(rnd, m.data[:mib/2])
		if n == 1 {
			copy(m.data, common)
		}
		common = bytes.Clone(m.data[:mib/2])
		m.keep(volume)
		for range 2 {
			offset := rnd.IntN(len(m.data)/4096-4) * 4096
			fill(rnd, m.data[offset:][:3*4096])
			changed := filepath.Join(m.dir, "changed")
			require.NoError(t, os.WriteFile(changed, []byte(line(offset, 3*4096)), 0o600))
			m.keep(volume, "--changed", changed)
		}
	}
	return m
}

func fill(rnd *rand.Rand, p []byte) {
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
}

// keep backs the disk up as a volume.
func (m *museum) keep(volume string, args ...string) {
	m.t.Helper()
	m.write()
	before := m.relative("")
	r := m.must("", append([]string{"image", "backup", "--volume", volume, "--device", m.disk, "--json"}, args...)...)
	var s summary
	require.NoError(m.t, json.Unmarshal([]byte(r.out), &s))
	written := slices.DeleteFunc(m.relative(""), func(f string) bool { return slices.Contains(before, f) })
	slices.SortFunc(written, func(a, b string) int { return modified(m.t, m.repo, a).Compare(modified(m.t, m.repo, b)) })
	sizes := map[string]int64{}
	for _, f := range written {
		sizes[f] = size(m.t, filepath.Join(m.repo, f))
	}
	m.images = append(m.images, exhibit{s.SnapshotID, volume, bytes.Clone(m.data), written, sizes})
}

func modified(t *testing.T, repo, file string) time.Time {
	t.Helper()
	info, err := os.Stat(filepath.Join(repo, file))
	require.NoError(t, err)
	return info.ModTime()
}

// relative lists files of the repository by kopia's prefix of their names.
func (m *museum) relative(prefix string) []string {
	m.t.Helper()
	files := m.files(prefix)
	for i, f := range files {
		files[i] = strings.TrimPrefix(f, m.repo+"/")
	}
	return files
}

// last is the last file of a kind that the backup of an image wrote: a q with its manifest, an x with the index of that.
func (e exhibit) last(prefix string) string {
	for _, f := range slices.Backward(e.written) {
		if strings.HasPrefix(f, prefix) {
			return f
		}
	}
	return ""
}

// largest is the largest file of a kind, which has what the image consists of.
func (e exhibit) largest(prefix string) string {
	name, length := "", int64(0)
	for _, f := range e.written {
		if strings.HasPrefix(f, prefix) && e.sizes[f] > length {
			name, length = f, e.sizes[f]
		}
	}
	return name
}

// damage is something that happens to one file.
type damage struct {
	name, file string
	// do returns nil for a file that is gone.
	do func(text []byte) []byte
}

func remove([]byte) []byte { return nil }

// cut keeps a part of a file; a negative length is counted from the end.
func cut(length func(size int) int) func([]byte) []byte {
	return func(text []byte) []byte { return text[:max(0, length(len(text)))] }
}

func flip(at func(size int) int) func([]byte) []byte {
	return func(text []byte) []byte {
		if len(text) > 0 {
			text[at(len(text))] ^= 1
		}
		return text
	}
}

// kinds are damages of one file.
func kinds(what, file string) []damage {
	named := func(how string, do func([]byte) []byte) damage { return damage{what + " " + how, file, do} }
	return []damage{
		named("removed", remove),
		named("cut to nothing", cut(func(int) int { return 0 })),
		named("cut to a half", cut(func(n int) int { return n / 2 })),
		named("cut by one byte", cut(func(n int) int { return n - 1 })),
		named("flipped at the start", flip(func(int) int { return 0 })),
		named("flipped near the start", flip(func(n int) int { return n / 20 })),
		named("flipped in the middle", flip(func(n int) int { return n / 2 })),
		named("flipped at the end", flip(func(n int) int { return n - 1 })),
	}
}

// damages are those to try, on all kinds of files.
func (m *museum) damages(rnd *rand.Rand, random int) []damage {
	full, shared, last := m.images[0], m.images[2], m.images[len(m.images)-1]
	some := func(what, file string) []damage {
		all := kinds(what, file)
		return []damage{all[0], all[2], all[6]}
	}
	all := slices.Concat(
		kinds("data pack of an increment", shared.largest("p")),
		some("data pack of a full image", full.largest("p")),
		some("metadata pack of an increment", last.largest("q")),
		some("metadata pack of a full image", full.largest("q")),
		kinds("manifest pack", last.last("q")),
		kinds("index of the manifest", last.last("x"))[:4],
		some("index of an increment", shared.largest("x")),
		some("index of a full image", full.largest("x")),
		some("format", "kopia.repository.f"),
		some("configuration", "kopia.blobcfg.f"),
	)
	// A small pack is mostly noise behind a content.
	for _, at := range []int{40, 200, 600} {
		all = append(all, damage{fmt.Sprintf("manifest pack flipped at %d", at), last.last("q"), flip(func(size int) int { return min(at, size-1) })})
	}
	files := slices.Concat(m.relative("p"), m.relative("q"), m.relative("x"), m.relative("kopia."))
	for n := range random {
		file := files[rnd.IntN(len(files))]
		where := rnd.Float64()
		do := []func([]byte) []byte{
			remove,
			cut(func(size int) int { return int(where * float64(size)) }),
			flip(func(size int) int { return int(where * float64(size)) }),
			flip(func(size int) int { return int(where * float64(size)) }),
		}[rnd.IntN(4)]
		all = append(all, damage{fmt.Sprintf("random %d, at %.3f", n, where), file, do})
	}
	return all
}

// outcome is what becomes of the images.
type outcome struct {
	hit, sound int
	// unopened says that the repository cannot be opened.
	unopened bool
	// example is one that is hit.
	example exhibit
}

// TestDamage damages a repository in many ways. The restore is the judge: what it brings back is what the volume held, and verify
// calls exactly those images damaged that it does not bring back. Every error says what is wrong.
func TestDamage(t *testing.T) {
	seed, random := numberOf(t, envSeed, int(time.Now().UnixNano())), numberOf(t, envDamages, 8)
	t.Logf("%s=%d", envSeed, seed)
	rnd := rand.New(rand.NewPCG(uint64(seed), 0)) //nolint:gosec // it is repeated by its seed
	m := newMuseum(t, rnd)
	var partly, unopened atomic.Int64
	t.Run("damages", func(t *testing.T) {
		for _, d := range m.damages(rnd, random) {
			t.Run(d.name, func(t *testing.T) {
				t.Parallel() // deriving keys takes most of the time
				o := m.suffer(t, d)
				t.Logf("%s of %d bytes: %d images hit, %d sound, unopened %v", d.file, size(t, filepath.Join(m.healthy, d.file)), o.hit, o.sound, o.unopened)
				if o.hit > 0 && o.sound > 0 {
					partly.Add(1)
				}
				if o.unopened {
					unopened.Add(1)
				}
			})
		}
	})
	require.Greater(t, partly.Load(), int64(15), "the damages must hit some images and spare others")
	require.Positive(t, unopened.Load())
}

// suffer damages a copy of the repository, and compares what is said of the images with what can be restored.
func (m *museum) suffer(t *testing.T, d damage) (o outcome) {
	t.Helper()
	here := &workbench{t: t, dir: t.TempDir(), repo: filepath.Join(t.TempDir(), "repo")}
	require.NoError(t, os.CopyFS(here.repo, os.DirFS(m.healthy)))
	file := filepath.Join(here.repo, d.file)
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	if text = d.do(text); text == nil {
		require.NoError(t, os.Remove(file))
	} else {
		require.NoError(t, os.WriteFile(file, text, 0o600))
	}
	before := here.files("")

	restored := here.bringBack(m.images)
	var ids []string
	for _, image := range m.images {
		ids = append(ids, image.id)
	}
	byID := here.verdicts(t, ids)
	all := here.run("", "image", "verify")
	for _, image := range m.images {
		failed := restored[image.id]
		v := byID[image.id]
		require.Equal(t, failed == nil, v.OK, "%s: restore says %v, verify %+v", image.id, failed, v)
		if failed == nil {
			o.sound++
			require.Contains(t, all.out, image.id+"  "+image.volume+"  ok, ")
			continue
		}
		o.hit++
		o.example = image
		said := v.Error
		for _, r := range v.Damage {
			said += r.Error
		}
		require.Regexp(t, named, failed.Error())
		require.Regexp(t, named, said)
		require.Error(t, all.err, "all is well, they say")
		o.unopened = all.out == "" && strings.HasPrefix(all.err.Error(), "open repository")
		if !o.unopened && !strings.Contains(all.out, image.id+"  "+image.volume+"  damaged") {
			require.Regexp(t, named, all.messages, "the manifest of %s cannot be read, and somebody must say so", image.id)
		}
	}
	switch {
	case o.hit > 0 && !strings.HasPrefix(d.name, "random"): // it takes as long as the rest
		here.complains(t, o, all)
	case o.hit == 0 && all.err != nil:
		require.ErrorContains(t, all.err, "there may be images that cannot be found", "what is lost is no image")
	}
	require.Equal(t, before, here.files(""), "reading writes nothing")
	return o
}

// complains looks at what the commands say to a person.
func (b *workbench) complains(t *testing.T, o outcome, verify result) {
	t.Helper()
	target := filepath.Join(b.dir, "target")
	require.NoError(t, os.WriteFile(target, make([]byte, len(o.example.data)), 0o600))
	restore := b.run("", "image", "restore", "--snapshot", o.example.id, "--device", target)
	list := b.run("", "image", "list")
	t.Logf("verify: %v\n%s%s\nlist: %v\n%s%s\nrestore: %v", verify.err, verify.out, verify.messages, list.err, list.out, list.messages, restore.err)
	errors := []error{restore.err, verify.err}
	if strings.Contains(list.out, o.example.id+"  "+o.example.volume) {
		require.Contains(t, restore.err.Error(), o.example.volume)
	} else {
		errors = append(errors, list.err)
	}
	for _, err := range errors {
		require.Error(t, err)
		require.Regexp(t, advice, err.Error()+verify.messages)
		require.NotContains(t, err.Error(), "\n")
	}
	require.Regexp(t, named, restore.err.Error())
}

// bringBack restores images, and returns what fails. It must not succeed with other bytes.
func (b *workbench) bringBack(images []exhibit) map[string]error {
	b.t.Helper()
	failed := map[string]error{}
	store, err := kopia.OpenFilesystemReadOnly(b.t.Context(), b.repo, os.Getenv(cli.EnvPassword))
	for _, image := range images {
		if err != nil {
			failed[image.id] = err
			continue
		}
		disk := device.NewMemory(make([]byte, len(image.data)), 4096)
		_, failed[image.id] = restore.Run(b.t.Context(), restore.Job{
			Store: store, Snapshot: repository.SnapshotID(image.id), Open: func(int64) (device.Writer, error) { return disk, nil },
		})
		if failed[image.id] == nil {
			got := make([]byte, len(image.data))
			_, err := disk.ReadAt(got, 0)
			require.NoError(b.t, err)
			require.True(b.t, bytes.Equal(image.data, got), "image %s: the restore has succeeded with wrong bytes", image.id)
		}
	}
	if err == nil {
		require.NoError(b.t, store.Close(b.t.Context()))
	}
	return failed
}

// verdicts reads images the way the Job of `kubectl blockmover verify` does.
func (b *workbench) verdicts(t *testing.T, ids []string) map[string]cli.Verification {
	t.Helper()
	r := b.run("", "image", "verify", "--json", "--snapshot", strings.Join(ids, ","))
	found := map[string]cli.Verification{}
	bad := 0
	for text := range strings.Lines(r.out) {
		var v cli.Verification
		require.NoError(t, json.Unmarshal([]byte(text), &v))
		found[string(v.SnapshotID)] = v
		if !v.OK {
			bad++
		}
	}
	require.Len(t, found, len(ids), "%v", r.err)
	require.Equal(t, bad > 0, r.err != nil, "%v", r.err)
	return found
}

// named is a blob or a content of kopia.
var named = regexp.MustCompile(`kopia\.(repository|blobcfg)|\b[pqx](n0_)?[0-9a-f]{32}-s|\b[a-z]?[0-9a-f]{32}\b`)

// advice is what to do.
var advice = regexp.MustCompile(`put (it|the index blob) back|put back|restore another|restore others`)
