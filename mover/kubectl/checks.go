package kubectl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/config"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/mover/exposer"
)

// Names of deploy/.
const (
	managerName  = "blockmover"
	workerName   = "blockmover-worker"
	configName   = "blockmover-config"
	configKey    = "config.yaml"
	serverName   = "velero"
	installGuide = "see docs/install.md"
)

// checkKinds looks whether the cluster serves what we reconcile.
func (s *session) checkKinds(ctx context.Context) ([]Finding, error) {
	var found []Finding
	for name, version := range map[string]string{"datauploads.velero.io": "v2alpha1", "datadownloads.velero.io": "v2alpha1", "backups.velero.io": "v1"} {
		crd := &apiextensionsv1.CustomResourceDefinition{}
		err := s.Client.Get(ctx, client.ObjectKey{Name: name}, crd)
		f := Finding{Object: name, Verdict: Fine, What: version + " is served"}
		switch {
		case apierrors.IsNotFound(err):
			f.Verdict, f.What, f.Do = Broken, "there is no such kind", "install Velero 1.18 or newer"
		case err != nil:
			return found, err
		case !slices.ContainsFunc(crd.Spec.Versions, func(v apiextensionsv1.CustomResourceDefinitionVersion) bool { return v.Name == version && v.Served }):
			f.Verdict, f.What, f.Do = Broken, "version "+version+" is not served", "install a Velero that has it: "+installGuide
		}
		found = append(found, f)
	}
	slices.SortFunc(found, func(a, b Finding) int { return strings.Compare(a.Object, b.Object) })
	return found, nil
}

// checkParts looks at the Deployments of Velero and of the manager.
func (s *session) checkParts(ctx context.Context) ([]Finding, error) {
	server, manager := &appsv1.Deployment{}, &appsv1.Deployment{}
	var found []Finding
	for name, into := range map[string]*appsv1.Deployment{serverName: server, managerName: manager} {
		object := "Deployment " + s.namespace() + "/" + name
		err := s.Client.Get(ctx, client.ObjectKey{Namespace: s.namespace(), Name: name}, into)
		switch {
		case apierrors.IsNotFound(err):
			found = append(found, Finding{Object: object, Verdict: Broken, What: "it does not exist", Do: "install it, or give the namespace of Velero with -n: " + installGuide})
		case err != nil:
			return found, err
		case into.Status.AvailableReplicas == 0:
			found = append(found, Finding{Object: object, Verdict: Broken, What: "no replica is available", Do: fmt.Sprintf("kubectl -n %s describe pods -l %s", s.namespace(), metav1.FormatLabelSelector(into.Spec.Selector))})
		default:
			found = append(found, Finding{Object: object, Verdict: Fine, What: fmt.Sprintf("%d available", into.Status.AvailableReplicas)})
		}
	}
	slices.SortFunc(found, func(a, b Finding) int { return strings.Compare(a.Object, b.Object) })
	if server.Name != "" {
		found = append(found, examineServer(server, manager)...)
	}
	return found, nil
}

// examineServer looks at the plugin and at the flags in the Deployment of Velero. The manager has no
// name if it is not installed.
func examineServer(server, manager *appsv1.Deployment) []Finding {
	var found []Finding
	plugin := ""
	for _, c := range server.Spec.Template.Spec.InitContainers {
		if strings.Contains(c.Image, "blockmover") {
			plugin = c.Image
		}
	}
	image := ""
	if manager.Name != "" {
		image = manager.Spec.Template.Spec.Containers[0].Image
	}
	switch {
	case plugin == "":
		found = append(found, Finding{
			Object: "plugin", Verdict: Broken, What: "Velero's Deployment has no init container with our plugin", Do: "velero plugin add IMAGE",
		})
	case image == "":
	case tagOf(plugin) == "" || tagOf(image) == "":
		found = append(found, Finding{
			Object: "plugin", Verdict: Fine, What: fmt.Sprintf("the plugin is %s, and the manager is %s: a digest does not say the version", plugin, image),
		})
	case tagOf(plugin) != tagOf(image):
		found = append(found, Finding{
			Object: "plugin", Verdict: Worse, What: fmt.Sprintf("the plugin is %s, and the manager is %s", plugin, image), Do: "install the same version of both",
		})
	default:
		found = append(found, Finding{Object: "plugin", Verdict: Fine, What: plugin + " and " + image + " have the same version"})
	}
	if !hasFeature(server.Spec.Template.Spec, velerov1.CSIFeatureFlag) {
		found = append(found, Finding{
			Object: "Deployment " + server.Namespace + "/" + server.Name, Verdict: Worse,
			What: "its server has no feature flag " + velerov1.CSIFeatureFlag + ": --data-mover blockmover backs up no volume, and only volume policies work",
			Do:   "add --features=" + velerov1.CSIFeatureFlag + " to the arguments of the server",
		})
	}
	return found
}

// hasFeature looks for a feature flag of Velero in the arguments of its server. Features may stand in
// an argument after --features, too.
func hasFeature(pod corev1.PodSpec, feature string) bool {
	return slices.ContainsFunc(pod.Containers, func(c corev1.Container) bool {
		return slices.ContainsFunc(slices.Concat(c.Command, c.Args), func(arg string) bool {
			return slices.Contains(strings.Split(strings.TrimPrefix(arg, "--features="), ","), feature)
		})
	})
}

// tagOf is the part of an image's name that says the version. It is empty for a name that has only a
// digest.
func tagOf(image string) string {
	name, _, pinned := strings.Cut(image, "@")
	if i := strings.LastIndex(name, ":"); i > strings.LastIndex(name, "/") {
		return name[i+1:]
	}
	if pinned {
		return ""
	}
	return "latest"
}

// settings reads the configuration of the manager.
func (s *session) settings(ctx context.Context) (config.Config, error) {
	cm := &corev1.ConfigMap{}
	if err := s.Client.Get(ctx, client.ObjectKey{Namespace: s.namespace(), Name: configName}, cm); err != nil {
		return config.Config{}, err
	}
	return config.Parse([]byte(cm.Data[configKey]))
}

func (s *session) checkLocations(ctx context.Context) ([]Finding, error) {
	list := &velerov1.BackupStorageLocationList{}
	if err := s.Client.List(ctx, list, client.InNamespace(s.namespace())); err != nil {
		return nil, err
	}
	if len(list.Items) == 0 {
		return []Finding{{Verdict: Broken, What: "there is none", Do: "velero backup-location create"}}, nil
	}
	var found []Finding
	for _, l := range list.Items {
		f := Finding{Object: l.Name, Verdict: Fine, What: string(l.Status.Phase)}
		if l.Status.Phase != velerov1.BackupStorageLocationPhaseAvailable {
			f.Verdict, f.What, f.Do = Broken, strings.TrimSpace("it is "+or(string(l.Status.Phase))+" "+l.Status.Message), "check its credential and its address: velero backup-location get"
		}
		found = append(found, f)
	}
	return found, nil
}

func (s *session) checkRepositories(ctx context.Context) ([]Finding, error) {
	list := &velerov1.BackupRepositoryList{}
	if err := s.Client.List(ctx, list, client.InNamespace(s.namespace())); err != nil {
		return nil, err
	}
	var found []Finding
	for _, r := range list.Items {
		f := Finding{Object: r.Name, Verdict: Fine, What: fmt.Sprintf("%s, of namespace %s", r.Status.Phase, r.Spec.VolumeNamespace)}
		switch {
		case r.Spec.RepositoryType != "kopia":
			continue
		case r.Status.Phase != velerov1.BackupRepositoryPhaseReady:
			f.Verdict, f.What, f.Do = Broken, strings.TrimSpace("it is "+or(string(r.Status.Phase))+" "+r.Status.Message), "velero repo get; if its files are sound, delete the BackupRepository, and Velero makes it again"
		}
		found = append(found, f)
	}
	if len(found) == 0 {
		found = []Finding{{Verdict: Fine, What: "there is none yet: the first backup makes one"}}
	}
	return found, nil
}

// labelClass marks the VolumeSnapshotClass that Velero takes for a driver.
const (
	labelClass        = "velero.io/csi-volumesnapshot-class"
	annotationDefault = "snapshot.storage.kubernetes.io/is-default-class"
)

// drivers returns the CSI drivers that have a StorageClass.
func (s *session) drivers(ctx context.Context) ([]string, error) {
	classes := &storagev1.StorageClassList{}
	if err := s.Client.List(ctx, classes); err != nil {
		return nil, err
	}
	csi := &storagev1.CSIDriverList{}
	if err := s.Client.List(ctx, csi); err != nil {
		return nil, err
	}
	var names []string
	for _, c := range classes.Items {
		if slices.ContainsFunc(csi.Items, func(d storagev1.CSIDriver) bool { return d.Name == c.Provisioner }) {
			names = append(names, c.Provisioner)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

func (s *session) checkClasses(ctx context.Context) ([]Finding, error) {
	drivers, err := s.drivers(ctx)
	if err != nil {
		return nil, err
	}
	list := &snapshotv1.VolumeSnapshotClassList{}
	err = s.Client.List(ctx, list)
	if meta.IsNoMatchError(err) {
		return []Finding{{Verdict: Broken, What: "the cluster has no VolumeSnapshots", Do: "install the snapshot controller and its CRDs of the CSI project"}}, nil
	}
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, driver := range drivers {
		of := slices.DeleteFunc(slices.Clone(list.Items), func(c snapshotv1.VolumeSnapshotClass) bool { return c.Driver != driver })
		usable := slices.ContainsFunc(of, func(c snapshotv1.VolumeSnapshotClass) bool {
			return c.Labels[labelClass] == "true" || c.Annotations[annotationDefault] == "true"
		})
		switch {
		case len(of) == 0:
			found = append(found, Finding{Object: driver, Verdict: Broken, What: "it has no VolumeSnapshotClass, so its volumes cannot be backed up", Do: "make one with the label " + labelClass + "=true"})
		case !usable && len(of) > 1:
			found = append(found, Finding{Object: driver, Verdict: Broken, What: fmt.Sprintf("it has %d VolumeSnapshotClasses, and none is the one to take", len(of)), Do: "label one " + labelClass + "=true"})
		default:
			found = append(found, Finding{Object: driver, Verdict: Fine, What: "it has a VolumeSnapshotClass"})
		}
	}
	return found, nil
}

// checkMetadataServices looks whether incremental backups are possible.
func (s *session) checkMetadataServices(ctx context.Context) ([]Finding, error) {
	drivers, err := s.drivers(ctx)
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, driver := range drivers {
		service, why, err := exposer.FindMetadataService(ctx, s.Client, s.Client.RESTMapper(), driver, nil)
		if err != nil {
			return found, err
		}
		if service == nil {
			found = append(found, Finding{
				Object: driver, Verdict: Worse, What: why + ": all backups of its volumes are full (CBTUnavailable)", Do: "ask the vendor for CSI changed block tracking (KEP-3314)",
			})
			continue
		}
		found = append(found, Finding{Object: driver, Verdict: Fine, What: "SnapshotMetadata at " + service.Address})
	}
	allowed, err := s.workerMayRead(ctx)
	if err != nil {
		return found, err
	}
	if !allowed {
		found = append(found, Finding{
			Object: "ServiceAccount " + s.namespace() + "/" + workerName, Verdict: Broken,
			What: "it may not get VolumeSnapshots, so the metadata service refuses it", Do: "apply deploy/worker-rbac.yaml",
		})
	}
	return found, nil
}

// workerMayRead asks the API server what the metadata service will ask it.
func (s *session) workerMayRead(ctx context.Context) (bool, error) {
	return s.may(ctx, workerName, authorizationv1.ResourceAttributes{
		Namespace: s.namespace(), Verb: "get", Group: "snapshot.storage.k8s.io", Resource: "volumesnapshots",
	})
}

// may asks the API server whether a service account of Velero's namespace has a right.
func (s *session) may(ctx context.Context, account string, right authorizationv1.ResourceAttributes) (bool, error) {
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: "system:serviceaccount:" + s.namespace() + ":" + account, ResourceAttributes: &right,
	}}
	if err := s.Client.Create(ctx, review); err != nil {
		return false, fmt.Errorf("ask what ServiceAccount %s may do: %w", account, err)
	}
	return review.Status.Allowed, nil
}

// checkMoverPods asks the API server, without making it, whether it would take the pod of a mover:
// Pod Security and other admission answer.
func (s *session) checkMoverPods(ctx context.Context) ([]Finding, error) {
	settings, err := s.settings(ctx)
	if apierrors.IsNotFound(err) {
		return []Finding{{Verdict: Broken, What: "cannot look without ConfigMap " + s.namespace() + "/" + configName, Do: "apply deploy/config.yaml"}}, nil
	}
	if err != nil {
		return nil, err
	}
	pod, err := exposer.PodPlan{
		Operation: identity.Operation{Kind: identity.KindDataUpload, Namespace: s.namespace(), Name: "doctor", UID: "doctor"},
		Config:    settings, Image: "blockmover", Relabel: true,
	}.Pod()
	if err != nil {
		return nil, err
	}
	err = s.Client.Create(ctx, pod, client.DryRunAll)
	if err == nil {
		return []Finding{{Object: "namespace " + s.namespace(), Verdict: Fine, What: "it admits pods of movers"}}, nil
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return nil, err
	}
	return []Finding{{
		Object: "namespace " + s.namespace(), Verdict: Broken, What: err.Error(),
		Do: "let the namespace admit user 0, for example Pod Security level baseline, or set securityContext.runAsUser: " + installGuide,
	}}, nil
}

func (s *session) checkNodes(ctx context.Context) ([]Finding, error) {
	list := &corev1.NodeList{}
	if err := s.Client.List(ctx, list); err != nil {
		return nil, err
	}
	usable := 0
	var found []Finding
	for _, n := range list.Items {
		ready := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
		switch {
		case n.Labels[corev1.LabelOSStable] == "windows":
		case !ready:
			found = append(found, Finding{Object: n.Name, Verdict: Worse, What: "it is not ready", Do: "kubectl describe node " + n.Name})
		case n.Spec.Unschedulable:
			found = append(found, Finding{Object: n.Name, Verdict: Worse, What: "it takes no pods (cordoned)", Do: "kubectl uncordon " + n.Name})
		default:
			usable++
		}
	}
	if usable == 0 {
		return append(found, Finding{Verdict: Broken, What: "no node can run a mover pod", Do: "kubectl get nodes"}), nil
	}
	return append(found, Finding{Verdict: Fine, What: fmt.Sprintf("%d of %d can run mover pods", usable, len(list.Items))}), nil
}
