package kubectl

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/internal/phase"
	"github.com/blockmover/blockmover/mover/cli"
)

func newVerifyCommand(s *session) *cobra.Command {
	o := verifyOptions{session: s}
	var budget string
	cmd := &cobra.Command{
		Use:   "verify [BACKUP|NAMESPACE/PVC] | --all",
		Short: "Read images completely from the repository, and say what cannot be restored",
		Long: "Verify runs a Job in the cluster that reads images as a restore does, and nothing else. It takes\n" +
			"all images of a backup, or the newest of a volume, or with --all the newest of each volume, those\n" +
			"first that were verified longest ago. The result is kept: chain shows it. It ends with an error if\n" +
			"an image is damaged.\n\n" +
			"With --restore-test it restores each image onto a scratch volume in Velero's namespace, one after\n" +
			"the other, checks the file system there, and deletes the volume. It ends with an error if a file\n" +
			"system has errors, too, or if a test cannot be made.",
		Args: oneArgument(0),
		RunE: s.run(func(ctx context.Context, args []string) error {
			if err := o.format.check(); err != nil {
				return err
			}
			if o.all != (len(args) == 0) {
				return errors.New("name a backup or NAMESPACE/PVC, or give --all, and not both")
			}
			if budget != "" {
				q, err := resource.ParseQuantity(budget)
				if err != nil || q.Sign() <= 0 {
					return fmt.Errorf("--max-bytes is %q, want a quantity such as 100Gi", budget)
				}
				o.maxBytes = q.Value()
			}
			if len(args) > 0 {
				o.what = args[0]
			}
			ctx, cancel := context.WithTimeout(ctx, o.timeout)
			defer cancel()
			return o.run(ctx)
		}),
	}
	o.format.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.all, "all", false, "the newest image of each volume")
	cmd.Flags().StringVar(&budget, "max-bytes", "", "take images until they have `so many` bytes together; at least one is taken")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 12*time.Hour, "`time` after which to give up")
	o.test.addFlags(cmd.Flags())
	return cmd
}

type verifyOptions struct {
	*session
	format   output
	what     string
	all      bool
	maxBytes int64
	timeout  time.Duration
	test     testOptions
}

// Verified is what came of one image.
type Verified struct {
	Volume string `json:"volume"`
	Backup string `json:"backup"`
	cli.Verification
}

func (o *verifyOptions) run(ctx context.Context) error {
	chosen, err := o.choose(ctx)
	if err != nil {
		return err
	}
	repositories := &velerov1.BackupRepositoryList{}
	if err := o.Client.List(ctx, repositories, client.InNamespace(o.namespace())); err != nil {
		return fmt.Errorf("list BackupRepositories: %w", err)
	}
	if o.test.on {
		return o.testRestores(ctx, chosen, repositories.Items)
	}
	groups := map[string][]*operation.View{}
	for _, u := range chosen {
		name, err := repositoryOf(u, repositories.Items)
		if err != nil {
			return err
		}
		groups[name] = append(groups[name], u)
	}
	results := []Verified{}
	var errs []error
	for _, name := range sortedKeys(groups) {
		found, err := o.verify(ctx, name, groups[name])
		results, errs = append(results, found...), append(errs, err)
	}
	rows := make([][]any, 0, len(results))
	damaged := 0
	for _, r := range results {
		rows = append(rows, r.row())
		if !r.OK {
			damaged++
		}
	}
	errs = append(errs, o.format.print(o.Streams.Out, results, verifyColumns, rows))
	if damaged > 0 {
		errs = append(errs, fmt.Errorf("%d of %d images are damaged: they cannot be restored completely; restore other backups, or put back what is missing", damaged, len(results)))
	}
	return errors.Join(errs...)
}

// choose returns the DataUploads whose images are read, oldest verification first.
func (o *verifyOptions) choose(ctx context.Context) ([]*operation.View, error) {
	all, err := operation.List(ctx, o.Client, identity.KindDataUpload, client.InNamespace(o.namespace()))
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(u *operation.View) bool {
		return u.Status.Phase != phase.Completed || u.Upload.Status.SnapshotID == ""
	})
	var chosen []*operation.View
	if !o.all && !strings.Contains(o.what, "/") {
		for _, u := range all {
			if u.Upload.Labels[velerov1.BackupNameLabel] == o.what {
				chosen = append(chosen, u)
			}
		}
	} else {
		newest := map[string]*operation.View{}
		for _, u := range all {
			volume := u.Claim().String()
			if before := newest[volume]; (o.all || volume == o.what) && (before == nil || u.Created.After(before.Created)) {
				newest[volume] = u
			}
		}
		for _, volume := range sortedKeys(newest) {
			chosen = append(chosen, newest[volume])
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("namespace %s has no complete image of %s: `kubectl blockmover status --all` lists backups and volumes", o.namespace(), cmp.Or(o.what, "any volume"))
	}
	at := verifiedAt
	if o.test.on {
		at = testedAt
	}
	slices.SortStableFunc(chosen, func(a, b *operation.View) int { return at(a).Compare(at(b)) })
	return withinBudget(chosen, o.maxBytes), nil
}

// withinBudget returns the first ones that have so many bytes together, and at least one. 0 is no limit.
func withinBudget(chosen []*operation.View, budget int64) []*operation.View {
	sum := int64(0)
	for n, u := range chosen {
		if sum += u.Status.BytesTotal; budget > 0 && sum > budget && n > 0 {
			return chosen[:n]
		}
	}
	return chosen
}

// verifiedAt is zero for an image that was never verified.
func verifiedAt(u *operation.View) time.Time {
	if v, err := u.VerifiedOf(); err == nil && v != nil {
		return v.At
	}
	return time.Time{}
}

// repositoryOf returns the BackupRepository that has an image.
func repositoryOf(u *operation.View, all []velerov1.BackupRepository) (string, error) {
	for _, r := range all {
		if r.Spec.RepositoryType == velerov1.BackupRepositoryTypeKopia && r.Spec.VolumeNamespace == u.Upload.Spec.SourceNamespace &&
			r.Spec.BackupStorageLocation == u.Upload.Spec.BackupStorageLocation {
			return r.Name, nil
		}
	}
	return "", fmt.Errorf("there is no BackupRepository of namespace %s in storage location %s", u.Upload.Spec.SourceNamespace, u.Upload.Spec.BackupStorageLocation)
}

// parseVerification reads a line of the job. ok is false for a message for people.
func parseVerification(line string) (v cli.Verification, ok bool) {
	err := json.Unmarshal([]byte(line), &v)
	return v, err == nil
}

// verify reads the images of one repository, and records what came of each.
func (o *verifyOptions) verify(ctx context.Context, repository string, uploads []*operation.View) ([]Verified, error) {
	byImage := map[string]*operation.View{}
	ids := make([]string, 0, len(uploads))
	for _, u := range uploads {
		byImage[u.Upload.Status.SnapshotID] = u
		ids = append(ids, u.Upload.Status.SnapshotID)
	}
	args := []string{"image", "verify", "--json", "--repo", cli.AddressOf(o.namespace(), repository), "--snapshot", strings.Join(ids, ",")}
	_, _ = fmt.Fprintf(o.Streams.ErrOut, "reading %d images of BackupRepository %s\n", len(uploads), repository)
	var found []Verified
	var notRecorded error
	err := o.runJob(ctx, uploads[0].Upload.Spec.BackupStorageLocation, args, func(log io.Reader) error {
		return eachLine(log, func(line string) error {
			v, ok := parseVerification(line)
			u := byImage[string(v.SnapshotID)]
			if !ok || u == nil {
				return nil // a message for people
			}
			result := Verified{u.Claim().String(), u.Upload.Labels[velerov1.BackupNameLabel], v}
			found = append(found, result)
			notRecorded = o.record(ctx, u, result)
			return notRecorded
		})
	})
	switch {
	case notRecorded != nil:
		return found, notRecorded
	case len(found) == len(uploads):
		return found, nil // the command fails if an image is damaged: what it has found counts
	case err == nil:
		err = fmt.Errorf("the job said nothing of %d of %d images of BackupRepository %s: verify again", len(uploads)-len(found), len(uploads), repository)
	}
	return found, err
}

// record keeps the result on the DataUpload, and makes an event of the Backup if the image is damaged.
func (o *verifyOptions) record(ctx context.Context, u *operation.View, v Verified) error {
	err := o.annotate(ctx, u, map[string]string{
		identity.AnnotationVerified: operation.Verified{At: time.Now().UTC().Truncate(time.Second), OK: v.OK, Detail: v.detail()}.String(),
	})
	if err != nil || v.OK {
		return err
	}
	return o.warn(ctx, v.Backup, "ImageDamaged", fmt.Sprintf("the image of volume %s cannot be restored completely: %s", v.Volume, v.detail()))
}

// annotate gives a DataUpload annotations. Velero and the manager do not write them.
func (o *verifyOptions) annotate(ctx context.Context, u *operation.View, annotations map[string]string) error {
	value, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations}})
	if err != nil {
		return fmt.Errorf("render verification: %w", err)
	}
	if err := o.Client.Patch(ctx, u.Object(), client.RawPatch("application/merge-patch+json", value), client.FieldOwner(Name)); err != nil {
		return fmt.Errorf("record verification of DataUpload %s: %w", u.Name, err)
	}
	return nil
}

// detail says what is damaged, or is "".
func (v Verified) detail() string {
	switch {
	case v.OK:
		return ""
	case v.Error != "":
		return v.Error
	case len(v.Damage) > 0:
		d := v.Damage[0]
		return fmt.Sprintf("%s cannot be read, first at offset %d: %s", size(v.DamagedBytes), d.Offset, d.Error)
	}
	return size(v.DamagedBytes) + " cannot be read"
}

var verifyColumns = []column{{"VOLUME", false}, {"BACKUP", false}, {"RESULT", false}, {"SIZE", false}, {"DETAIL", false}}

func (v Verified) row() []any {
	result := "ok"
	if !v.OK {
		result = "damaged"
	}
	return []any{v.Volume, v.Backup, result, size(v.Size), or(v.detail())}
}
