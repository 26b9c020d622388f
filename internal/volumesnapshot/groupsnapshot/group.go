package groupsnapshot

import (
	"context"
	"fmt"
	"strings"

	groupsnapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/group"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/content"
	"github.com/blockmover/blockmover/internal/volumesnapshot/internal/groupapi"
)

// Groups are the group snapshots of a cluster.
type Groups struct {
	client client.Client
	reader client.Reader
}

// New returns Groups. reader answers from the API server.
func New(c client.Client, reader client.Reader) Groups { return Groups{c, reader} }

// Group is the handle of one group, whether or not its objects exist.
type Group struct {
	Ref
	client   client.Client
	reader   client.Reader
	contents content.Client
	keeper   groupapi.Keeper
	objects  groupapi.Objects
}

// Open returns the handle of a group, for the best version of the API that the cluster
// serves. Its error is that of the discovery; that the cluster does not serve the API
// is no error of Open.
func (g Groups) Open(ref Ref) (Group, error) {
	served, err := groupapi.Discover(g.client.RESTMapper(), g.reader)
	if err != nil {
		return Group{}, err
	}
	return g.handle(served, ref), nil
}

func (g Groups) handle(served groupapi.Objects, ref Ref) Group {
	return Group{Ref: ref, client: g.client, reader: g.reader, contents: content.New(g.client, g.reader), keeper: groupapi.NewKeeper(g.client, g.reader), objects: served}
}

// Classes returns the VolumeGroupSnapshotClasses.
func (g Group) Classes(ctx context.Context) ([]group.Class, error) {
	list, err := g.objects.List(ctx, groupapi.KindClass)
	if err != nil {
		return nil, err
	}
	classes := make([]group.Class, len(list))
	for i := range list {
		class, err := groupapi.Decode(&list[i], &groupsnapshotv1.VolumeGroupSnapshotClass{})
		if err != nil {
			return nil, err
		}
		classes[i] = group.Class{
			Name:    class.Name,
			Driver:  class.Driver,
			Default: class.Labels[velerov1.VolumeGroupSnapshotClassDefaultLabel] == "true",
		}
	}
	return classes, nil
}

// Find returns nil if the VolumeGroupSnapshot does not exist. One with the name that
// belongs to another backup is an error.
func (g Group) Find(ctx context.Context) (*VolumeGroupSnapshot, error) {
	object, err := g.objects.Find(ctx, groupapi.KindGroup, g.key())
	if err != nil || object == nil {
		return nil, err
	}
	if err := g.adoptable(object); err != nil {
		return nil, fmt.Errorf("adopt VolumeGroupSnapshot %s: %w", g, err)
	}
	return readGroup(object)
}

// Create stamps the members and creates the VolumeGroupSnapshot, or returns the one
// that another member created in the meantime.
func (g Group) Create(ctx context.Context, class string, members []string) (*VolumeGroupSnapshot, error) {
	if g.objects.Served == nil {
		return nil, ErrNotServed
	}
	if err := stamp(ctx, g.client, g.Ref, members); err != nil {
		return nil, err
	}
	vgs := &groupsnapshotv1.VolumeGroupSnapshot{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: g.Namespace,
			Name:      g.Name,
			Labels: map[string]string{
				identity.LabelBackupUID: g.BackupUID,
				// Velero still passes it to the finalize phase of its own backup.
				velerov1.ExcludeFromBackupLabel: "true",
			},
			Annotations: map[string]string{identity.AnnotationMembers: strings.Join(members, ",")},
		},
		Spec: groupsnapshotv1.VolumeGroupSnapshotSpec{
			Source: groupsnapshotv1.VolumeGroupSnapshotSource{
				Selector: &metav1.LabelSelector{MatchLabels: map[string]string{identity.GroupStamp(g.Name): g.BackupUID}},
			},
			VolumeGroupSnapshotClassName: &class,
		},
	}
	rendered, err := runtime.DefaultUnstructuredConverter.ToUnstructured(vgs)
	if err != nil {
		return nil, fmt.Errorf("render VolumeGroupSnapshot %s: %w", g, err)
	}
	object := &unstructured.Unstructured{Object: rendered}
	object.SetGroupVersionKind(g.objects.Served.WithKind(groupapi.KindGroup))
	object, err = kube.AdoptAfter(ctx, g.reader, object, g.client.Create(ctx, object), g.adoptable)
	if err != nil {
		return nil, err
	}
	return readGroup(object)
}
