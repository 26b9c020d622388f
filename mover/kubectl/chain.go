package kubectl

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/internal/volumesnapshot/rehome"
	"github.com/blockmover/blockmover/mover/cli"
)

// Image is what one backup did with a volume.
type Image struct {
	Backup  string    `json:"backup"`
	Phase   string    `json:"phase"`
	Created time.Time `json:"created"`
	// Kind is Full or Incremental. Reasons say why it is not an increment on the newest image, and
	// Detail says it in the words of whoever knows.
	Kind    string   `json:"kind,omitempty"`
	Reasons []string `json:"reasons,omitempty"`
	Detail  string   `json:"detail,omitempty"`
	// Parent is the backup whose image it builds on, or else the repo snapshot.
	Parent       string `json:"parent,omitempty"`
	RepoSnapshot string `json:"repoSnapshot,omitempty"`
	Location     string `json:"location"`
	// LogicalBytes is the size of the volume. ReadBytes were read of the device, UploadedBytes were
	// new to the repository, before compression, and MetadataBytes describe them.
	LogicalBytes  int64 `json:"logicalBytes"`
	ReadBytes     int64 `json:"readBytes"`
	UploadedBytes int64 `json:"uploadedBytes"`
	MetadataBytes int64 `json:"metadataBytes"`
	// IncompressibleBytes of the uploaded ones cannot be compressed, and ZeroBytes of those that were
	// read are zero.
	IncompressibleBytes int64 `json:"incompressibleBytes"`
	ZeroBytes           int64 `json:"zeroBytes"`
	// Verified is when the image was read completely, if it was.
	Verified *operation.Verified `json:"verified,omitempty"`
	// Tested is what came of its newest restore test, if there was one.
	Tested *operation.Tested `json:"tested,omitempty"`
	// Suspicion says why the increment is not like those before it.
	Suspicion string `json:"suspicion,omitempty"`
	Seconds   int64  `json:"seconds"`
	// Base is the storage snapshot that is retained for it.
	Base    string `json:"base,omitempty"`
	Message string `json:"message,omitempty"`
}

func newChainCommand(s *session) *cobra.Command {
	var (
		format output
		failed bool
	)
	cmd := &cobra.Command{
		Use:   "chain NAMESPACE/PVC",
		Short: "Show the backups of a volume in order: what each of them is, and what it cost",
		Long: "Chain shows the backups of a volume in order. Each image is complete: none of them needs\n" +
			"another one to be restored.\n\n" +
			"It reads DataUploads. A backup that another cluster made has none.",
		Args: oneArgument(1),
		RunE: s.run(func(ctx context.Context, args []string) error {
			if err := format.check(); err != nil {
				return err
			}
			if _, err := cli.ParseVolume(args[0]); err != nil {
				return fmt.Errorf("volume is %q, want NAMESPACE/PVC", args[0])
			}
			uploads, err := operation.List(ctx, s.Client, identity.KindDataUpload, client.InNamespace(s.namespace()))
			if err != nil {
				return err
			}
			images := chainOf(uploads, args[0], failed)
			if len(images) == 0 && len(chainOf(uploads, args[0], true)) > 0 {
				return fmt.Errorf("no backup of volume %s has an image: --all shows those without one, and -o wide why", args[0])
			}
			if len(images) == 0 {
				return fmt.Errorf("namespace %s has no DataUpload of volume %s: `kubectl blockmover status --all` lists the volumes", s.namespace(), args[0])
			}
			rows := make([][]any, 0, len(images))
			for _, i := range images {
				rows = append(rows, i.row())
			}
			return format.print(s.Streams.Out, images, chainColumns, rows)
		}),
	}
	format.add(cmd.Flags())
	cmd.Flags().BoolVarP(&failed, "all", "a", false, "show those that have no image, too; -o wide says why they have none")
	return cmd
}

// chainOf returns the images of a volume, oldest first.
func chainOf(uploads []*operation.View, volume string, failed bool) []Image {
	names := map[string]string{}
	var images []Image
	for _, u := range uploads {
		if u.Claim().String() != volume || !failed && u.Status.Phase != phase.Completed {
			continue
		}
		i := imageOf(u)
		if i.RepoSnapshot != "" {
			names[i.RepoSnapshot] = i.Backup
		}
		images = append(images, i)
	}
	for n, i := range images {
		if name, ok := names[i.Parent]; ok {
			images[n].Parent = name
		}
	}
	slices.SortFunc(images, func(a, b Image) int { return a.Created.Compare(b.Created) })
	return images
}

func imageOf(u *operation.View) Image {
	i := Image{
		Backup: u.Upload.Labels[velerov1.BackupNameLabel], Phase: string(u.Status.Phase), Created: u.Created,
		RepoSnapshot: u.Upload.Status.SnapshotID, Location: u.Upload.Spec.BackupStorageLocation,
		LogicalBytes: u.Status.BytesTotal, Message: u.Status.Message,
	}
	if !u.Status.Completed.IsZero() && !u.Status.Started.IsZero() {
		i.Seconds = int64(u.Status.Completed.Sub(u.Status.Started).Seconds())
	}
	if v, err := u.VerifiedOf(); err == nil {
		i.Verified = v
	}
	if t, err := u.TestedOf(); err == nil {
		i.Tested = t
	}
	if base := rehome.ParseRetained(u.Status.Retained); base != nil {
		i.Base = base.SnapshotHandle
	}
	result := u.Result()
	i.Kind, i.Parent, i.Detail = result["kind"], result["parent"], result["detail"]
	if result["reasons"] != "" {
		i.Reasons = strings.Split(result["reasons"], ",")
	}
	i.ReadBytes, i.UploadedBytes, i.MetadataBytes = result.Number("bytesRead"), result.Number("bytesUploaded"), result.Number("metadataBytes")
	i.IncompressibleBytes, i.ZeroBytes, i.Suspicion = result.Number("incompressibleBytes"), result.Number("zeroBytes"), result["suspicion"]
	if size := result.Number("volumeSize"); size > 0 {
		i.LogicalBytes = size
	}
	return i
}

var chainColumns = []column{
	{"BACKUP", false},
	{"CREATED", false},
	{"KIND", false},
	{"PARENT", false},
	{"REASON", false},
	{"SIZE", false},
	{"READ", false},
	{"UPLOADED", false},
	{"METADATA", true},
	{"TIME", false},
	{"BASE", false},
	{"VERIFIED", false},
	{"TESTED", false},
	{"LOCATION", true},
	{"REPO SNAPSHOT", true},
	{"DETAIL", true},
}

func (i Image) row() []any {
	kind := i.Kind
	if i.Phase != string(phase.Completed) {
		kind = i.Phase
	}
	base := "no"
	if i.Base != "" {
		base = "retained"
	}
	reasons, detail := i.Reasons, i.Detail
	if i.Suspicion != "" {
		reasons, detail = append(slices.Clone(reasons), "SuspiciousChange"), i.Suspicion
	}
	if i.Message != "" {
		detail = i.Message
	}
	return []any{
		or(i.Backup), i.Created.UTC().Format(time.RFC3339), or(kind), or(i.Parent), or(strings.Join(reasons, ",")),
		i.size(i.LogicalBytes), i.size(i.ReadBytes), i.size(i.UploadedBytes), i.size(i.MetadataBytes),
		lasting(time.Duration(i.Seconds) * time.Second), base, i.verified(), i.tested(), or(i.Location), or(i.RepoSnapshot), or(detail),
	}
}

// size is a number of bytes for people. Of a backup without an image, 0 says nothing.
func (i Image) size(n int64) string {
	if n == 0 && i.RepoSnapshot == "" && i.Phase != string(phase.Completed) {
		return unknown
	}
	return size(n)
}

func (i Image) verified() string {
	switch {
	case i.Verified == nil:
		return "never"
	case !i.Verified.OK:
		return "DAMAGED"
	}
	return i.Verified.At.UTC().Format(time.DateOnly)
}

// tested is when the newest restore test was, or what was wrong.
func (i Image) tested() string {
	switch {
	case i.Tested == nil:
		return "never"
	case i.Tested.Sound():
		return i.Tested.At.UTC().Format(time.DateOnly)
	}
	return strings.ToUpper(string(i.Tested.Result))
}
